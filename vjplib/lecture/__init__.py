"""Figures drawn and pages written from running code: `figures` of the lecture, `rule_pages` of the rules."""
