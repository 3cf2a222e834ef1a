"""The experiments whose tables the README shows; none is part of a night."""
