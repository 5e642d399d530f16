"""Photos larger than the network sees, matched window by window."""
