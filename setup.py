from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="fairchem_piwsl",
    version="0.1.0",
    description="Physics-informed weak supervision for interatomic potentials with few labels (fairchem plugin)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["fairchem_piwsl", "fairchem_piwsl.*"]),
    package_data={"": ["*.csv"]},
    install_requires=[
        "fairchem-core==1.10.0",
        "ase",
        "h5py",
        "lmdb",
        "matplotlib",
        "numpy",
        "optuna>=4",
        "pyyaml",
        "rich",
        "scipy",
        "submitit",
        "tensorboard",
        "torch",
        "torch-geometric",
        "typer",
        "wandb",
    ],
    extras_require={
        "scatter": ["torch-scatter"],
        # storage of sweeps in a database: postgresql+psycopg://..., mysql+pymysql://...
        "postgresql": ["psycopg[binary]"],
        "mysql": ["pymysql"],
        "xtb": ["tblite>=0.8,<0.9"],
        "test": ["pytest", "hypothesis"],
        "dev": [
            "pytest",
            "hypothesis",
            "mypy~=2.4.0",
            "pre-commit",
            "ruff~=0.17.0",
            "types-PyYAML",
            "yamllint",
        ],
    },
    entry_points={"console_scripts": ["piwsl=fairchem_piwsl.cli:main"]},
)
