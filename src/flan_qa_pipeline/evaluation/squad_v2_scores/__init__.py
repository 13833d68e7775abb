"""SQuAD 2.0's exact match and F1."""
