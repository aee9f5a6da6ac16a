"""What a comparison's figures say beyond their values: intervals, differences, who can be told from whom."""
