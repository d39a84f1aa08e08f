"""Looking through texts, where it is done: short ones here, dear ones in other processes."""
