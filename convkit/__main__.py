"""`python -m convkit`."""

from .cli import main

raise SystemExit(main())
