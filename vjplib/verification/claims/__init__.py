"""The claims: one file each, ending in its record `CLAIM`; `vjplib.verification.registry` finds them."""
