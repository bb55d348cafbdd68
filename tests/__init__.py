"""Tests: the folders mirror the packages; a test's name is a promise."""
