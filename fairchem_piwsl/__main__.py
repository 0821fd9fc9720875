"""`python -m fairchem_piwsl` is `piwsl`."""

from fairchem_piwsl.cli import main

if __name__ == "__main__":
    main()
