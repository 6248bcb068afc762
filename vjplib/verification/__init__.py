"""Verification of any function's derivative, one file to a kind of claim; it knows records, and none of the rules."""

from vjplib.verification.report import CLAIMS as CLAIMS
from vjplib.verification.report import Finding as Finding
from vjplib.verification.report import Report as Report
from vjplib.verification.run import NotVerifiedError as NotVerifiedError
from vjplib.verification.run import assert_verified as assert_verified
from vjplib.verification.run import verify as verify
from vjplib.verification.run import verify_rule as verify_rule
