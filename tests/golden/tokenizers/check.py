"""Opens directories that the program wrote with transformers' AutoTokenizer and compares the ids of the 1,000 texts.

    TRAINER_TOKENIZERS_OUT=DIR cargo test --release --test golden_tokenizers
    tests/bench/.venv/bin/python tests/golden/tokenizers/check.py DIR

Each subdirectory is opened as it is and by its vocabulary files alone. Both must give the ids of expected.json, or those
that the program itself gave (ours.txt) where the tokenizer is one that it trained.
"""

import json
import os
import shutil
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from generate import HERE, MAX_LENGTH, expected  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

if __name__ == "__main__":
    texts = [json.loads(line) for line in open(os.path.join(HERE, "texts.jsonl"), encoding="utf-8")]
    stored = json.load(open(os.path.join(HERE, "expected.json"), encoding="utf-8"))
    wrong = 0
    for name in sorted(os.listdir(sys.argv[1])):
        path = os.path.join(sys.argv[1], name)
        whole = AutoTokenizer.from_pretrained(path)
        found = expected(whole, texts)
        with tempfile.TemporaryDirectory() as old:
            shutil.copytree(path, old, dirs_exist_ok=True)
            os.remove(os.path.join(old, "tokenizer.json"))
            by_vocabulary = expected(AutoTokenizer.from_pretrained(old), texts)
        against = "expected.json" if name in stored else "ours.txt"
        wanted = stored[name]["hashes"] if name in stored else open(os.path.join(path, against), encoding="utf-8").read()
        good = found["hashes"] == wanted == by_vocabulary["hashes"]
        print(f"{name}: {type(whole).__name__}, {found['vocab_size']} ids, {len(texts)} texts cut at {MAX_LENGTH}, "
              f"against {against} and by vocabulary files: {'equal' if good else 'DIFFERENT'}")
        wrong += not good
    sys.exit(wrong > 0)
