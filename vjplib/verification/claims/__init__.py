"""The claims: one file or folder each, ending in the record `CLAIM`; `vjplib.verification.registry` finds them."""
