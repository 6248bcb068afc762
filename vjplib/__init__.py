"""JAX layers whose backward rules are derived by hand and proved right by machine.

The map of the package, from the bottom up; a room imports only from those above it in this list:

    compat        the only door to JAX's private and moving parts
    memory        `keep_memory`: the processor's allocator keeps what compiled programs free
    precision     the dtype policy: what is computed in which precision
    jacobians     what a layer's derivative looks like: dense, diagonal, banded Toeplitz, diagonal minus low rank
    rule          the record that each rule file ends with, and `find`, which finds the records
    rules         what users call, one family to a file or folder: formula, forward, derivation, backward, record
    verification  proves a rule: `verify`; one file to a claim in `claims`, why a failure failed in `explain`
    debug         checks the contract of a custom_vjp while JAX traces a program
    reports       what a run of the verifier found, as JSON, Markdown, JUnit or HTML, and what changed since another
    auditing      `audit`: records the custom rules that a program calls, and judges each where it was called
    mutation      wrong rules made by machine, to test the verifier
    testing       one's own rules verified by one's own tests; the plugin of pytest is the module vjplib_pytest
    bench         times rules, training steps of flax networks and random convolutions against what users would call
    training      networks of pure functions, and their training with optax
    lecture       the lecture's figures, drawn from running code, and the pages of the rules
    commands      the command line: a module a command, and what they share
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
