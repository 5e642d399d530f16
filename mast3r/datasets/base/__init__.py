"""Base class of data sets that train matching."""
