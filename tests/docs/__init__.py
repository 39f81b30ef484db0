"""Tests of the documentation: links, tables, commands and examples agree with the code."""
