"""What a run or a comparison will cost, before it runs."""
