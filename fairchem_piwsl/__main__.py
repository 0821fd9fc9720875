"""`python -m fairchem_piwsl --mode train ...`: what `main.py` does, from any folder."""

from fairchem_piwsl.jobs.launch import main

if __name__ == "__main__":
    main()
