"""fairchem's command line with the PIWSL plugin loaded.

python main.py --mode train --config-yml configs/s2ef/example.yml
"""

import sys

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.upstream import require_version_1

try:
    require_version_1("main.py")
except UserError as error:
    sys.exit(str(error))

# At module level: ranks that are spawned for --num-gpus > 1 import this file and register the plugin too.
from fairchem_piwsl.jobs.launch import main

if __name__ == "__main__":
    main()
