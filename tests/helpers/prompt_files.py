"""Files of prompts for tests, and prompt data read from them."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

from layersweep.rollout.data.data_config import Columns, DataConfig
from layersweep.rollout.data.prompt_data import PromptData
from layersweep.rollout.data.row_prompts import ground_truth


def truth(raw):
    answer = ground_truth(raw, Columns())
    if not isinstance(answer, str):
        raise ValueError(f"answer is not text but {type(answer).__name__}")
    return answer


def jsonl(path: Path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def numbered(path: Path, count: int) -> str:
    return jsonl(path, *({"question": f"What is {i} plus one?", "answer": str(i + 1)} for i in range(count)))


def load(path: str, **settings) -> PromptData:
    return PromptData(DataConfig(path=path, **settings), truth)


ALL_TRAIN = {"selection_share": 0.0, "final_share": 0.0}


def de_facto(question: str, answer: str) -> dict:
    return {
        "data_source": "somewhere",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": 0},
    }


GOOD = {"question": "fine?", "answer": "yes"}


def rows_of(*numbers: int) -> list[dict]:
    return [{"question": f"Q{i}", "answer": str(i)} for i in numbers]


def written(folder: Path, files: dict[str, list[dict]]) -> Path:
    """Files of rows below a folder, in the format that each name ends with."""
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            continue
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        kind = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}.get(path.suffix)
        with pyarrow.output_stream(str(path), compression=kind) as stream:
            stream.write(lines)
    return folder
