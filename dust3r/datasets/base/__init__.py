"""Building blocks of data sets: sampling."""
