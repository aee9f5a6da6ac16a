"""Whether a method keeps its promises."""
