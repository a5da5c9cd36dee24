"""Recipes that train what slimdiff ships."""
