"""MindSpore Lite: what it needs beside the graphs, and running them with it on Ascend cards.

It follows the documentation of mindspore_lite and has never met the library itself, of which the
package index has no package; its test has a stand-in. Graphs that share a ModelGroup share their
parameters, and so the caches.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lm_core.errors import ConfigError
from lm_core.export.description import Description

SETTINGS = """\
[ascend_context]
plugin_custom_ops=All
provider=ge
{table}[ge_session_options]
ge.exec.formatMode=1
ge.exec.precision_mode=must_keep_origin_dtype
"""

SCRIPT = """\
#!/usr/bin/env bash
# Continues a prompt with MindSpore Lite on Ascend cards (untested, see `export --help`):
#   bash run_lite.sh "PROMPT" [more arguments of predict]
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"{up}
first="${{START_DEVICE_ID:-0}}"
for ((i = 0; i < {ranks}; i++)); do
  # All ranks must draw alike, so there is a seed.
  RANK_ID="$i" python -m lm_{model}.predict --mindir "{part}" --lite "{part}/lite.ini" \\
    --device_id "$((first + i))" --seed "${{SEED:-0}}" --predict_data "$@" > "rank_$i.log" 2>&1 &
done
wait
cat rank_0.log
"""


def write(folder: Path, description: Description) -> None:
    """Writes lite.ini and run_lite.sh into the folder of an export."""
    ranks = description.model_parallel
    # The card's file names the rank table where several cards work together.
    table = "rank_table_file=RANK_TABLE_FILE\n" if ranks > 1 else ""
    (folder / "lite.ini").write_text(SETTINGS.format(table=table), encoding="utf-8")
    up, part = ("/..", "rank_$i") if ranks > 1 else ("", ".")
    script = folder / "run_lite.sh"
    script.write_text(
        SCRIPT.format(up=up, ranks=ranks, model=description.model, part=part),
        encoding="utf-8",
    )
    script.chmod(0o755)


def require(description: Description) -> None:
    """Raises ConfigError where the library is missing or the graphs have open sizes."""
    if description.dynamic:
        raise ConfigError(
            "lite: the export has open sizes; must be fixed for MindSpore Lite; export without "
            "--dynamic"
        )
    if find_spec("mindspore_lite") is None:
        raise ConfigError(
            "lite: mindspore_lite is not installed; must be the package of your CANN version "
            "(www.mindspore.cn/lite); install it, or leave --lite out to run with MindSpore"
        )


class LiteGraphs:
    """Computes the two graphs of a folder with MindSpore Lite.

    Args:
        folder: of the export.
        description: its contents.
        settings: lite.ini.
        device_id: the card.
    """

    def __init__(
        self, folder: Path, description: Description, settings: str | Path, device_id: int
    ) -> None:
        # It is on no index, so a checker of types would not find it.
        lite: Any = import_module("mindspore_lite")

        if not Path(settings).is_file():
            raise ConfigError(f"lite: {settings}: no such file; must be an .ini file; change it")
        context = lite.Context()
        context.target = ["Ascend"]
        context.ascend.device_id = device_id
        context.ascend.rank_id = description.rank
        context.ascend.provider = "ge"
        group = lite.ModelGroup(lite.ModelGroupFlag.SHARE_WEIGHT)
        self.models: dict[str, Any] = {name: lite.Model() for name in ("prefill", "increment")}
        group.add_model(list(self.models.values()))
        for name, model in self.models.items():
            path = str(folder / getattr(description.graphs, name))
            model.build_from_file(path, lite.ModelType.MINDIR, context, str(settings))
        self.tensor = lite.Tensor

    def __call__(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        """The logits that a graph gives for int32 inputs."""
        given = [self.tensor(np.ascontiguousarray(values, np.int32)) for values in inputs]
        return self.models[name].predict(given)[0].get_data_to_numpy()
