"""Experiments whose tables the README shows. No job runs them."""
