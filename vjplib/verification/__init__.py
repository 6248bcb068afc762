"""Verification of any function's derivative, one file to a claim; it knows records of rules, and none of the rules."""

from vjplib.verification.api import NotVerifiedError as NotVerifiedError
from vjplib.verification.api import assert_verified as assert_verified
from vjplib.verification.api import verify as verify
from vjplib.verification.api import verify_rule as verify_rule
from vjplib.verification.claim import Claim as Claim
from vjplib.verification.registry import CLAIMS as CLAIMS
from vjplib.verification.report import Explanation as Explanation
from vjplib.verification.report import Finding as Finding
from vjplib.verification.report import Report as Report
