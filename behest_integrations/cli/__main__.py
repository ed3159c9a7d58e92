"""`python -m behest_integrations.cli`."""

from . import main

main()
