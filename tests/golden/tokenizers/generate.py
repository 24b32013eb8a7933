"""Golden artefacts of transformers' tokenizers: 1,000 texts and the ids that RobertaTokenizer and BertTokenizer give them.

Writes texts.jsonl, the tokenizer directories bpe, bpe_prefix, wordpiece and wordpiece_cased, and expected.json.
Run it with the peers' Python: `tests/bench/.venv/bin/python tests/golden/tokenizers/generate.py`.
"""

import hashlib
import json
import os
import random
import shutil
from collections import Counter

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from transformers import BertTokenizer, RobertaTokenizer  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS, MAX_LENGTH, WHOLE = 1000, 128, 50
BPE_SIZE = 1131  # as many as AlloyBERT's own tokenizer has
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

ELEMENTS = "Al Co Cr Cu Fe Hf Mn Mo Nb Ni Re Sc Si Ta Ti V W Zr".split()
PHASES = ["FCC", "BCC", "HCP", "B2", "BCC+Laves", "FCC + L1₂", "σ phase", "α+β", "γ/γ′"]
ROUTES = [
    "as-cast", "arc melting", "annealed", "hot isostatic pressing", "wrought", "powder metallurgy",
    "spark-plasma sintering",
]
SENTENCES = [
    "The alloy's formula is {formula}.",
    "Its composition is {formula} (at.%), melted from 99.{n2} % pure elements.",
    "Alloy has {f} atoms of {el}.",
    "{el} has an atomic mass of {f} u and melts at {n4}.{n1} °C.",
    "Density {f} g/cm³, measured by Archimedes' method.",
    "The grain size is {f} µm (±{n1}.{n2} µm).",
    "Yield strength of {n3} MPa at {n3} °C, {n4} K.",
    "The specimen was {route}, then aged for {n2}h at {n4}°C/{n1}min.",
    "Microstructure: {phase}; the second phase is {phase}.",
    "Young's modulus ≈ {n3}.{n2} GPa, hardness HV{n3}.",
    "Lattice parameter a = 0.{n4} nm, strain rate 1e-{n1} s^-1 (i.e. 10⁻³ s⁻¹).",
    "ΔH_mix = -{n1}.{n2} kJ/mol, δ = {n1}.{n2} %, VEC={n1}.{n1}.",
    "O: {n4} ppm, N: {n3} ppm, C: {n2} wppm.",
    "It wasn't tested in tension; they've measured compression only, didn't they?",
    "See doi:10.1016/j.actamat.{n4}.{n2}.{n3}.",
]
ODD_SPACE = [
    "\t", "\n", "\r\n", "  ", "     ", "\u00a0", "\u2009", "\u3000", "\u200b", "\ufeff", "\x0b", "\x0c", "\u2028",
    "\u0085", "\x00", "\x7f", "\u00ad",
]
UNICODE = [
    "é", "e\u0301", "Å", "A\u030a", "ñandú", "naïve café", "Straße", "İstanbul", "ΣΑΣ", "σίγμα τελικός", "Ωmega",
    "µm μm", "½ ⅔ ²³ ₂", "钢的屈服强度", "合金 HEA 性能", "ハイエントロピー合金", "고엔트로피", "сплав титана", "سبيكة", "נתך", "मिश्रधातु",
    "โลหะผสม", "😀🔬", "👩‍🔬", "🇹🇼", "ﬁne ﬂow", "…—–‘’“”„", "\u0301", "a\u0300\u0301\u0302", "\ue000", "\U00020000",
    "\ufffd", "\u0600", "№ ℃ Å Ω", "Ⅷ", "𝛼-Ti", "ｆｕｌｌ ｗｉｄｔｈ", "ǅ", "ß ẞ", "ŉ", "\u1e9e",
]
SPECIAL = ROBERTA + BERT
SPECIAL += ["< mask >", "<MASK>", "[mask]", "<mask", "##ing", "Ġ", "Ċ", "▁", "\\n", "\"quoted\"", "<|endoftext|>", "[unused0]"]


def formula(rng):
    style = rng.randrange(4)
    parts = rng.sample(ELEMENTS, rng.randint(2, 6))
    amount = lambda: rng.choice(["", "1", "2", f"{rng.random():.2f}", f"{rng.random() * 40:.1f}", f"{rng.random():.3e}", ".5"])
    if style == 0:
        return " ".join(p + (amount() or "1") for p in parts)
    if style == 1:
        return "".join(p + amount() for p in parts)
    if style == 2:
        return "-".join(f"{rng.randint(1, 60)}{p}" for p in parts)
    return "(" + "".join(parts[:-1]) + f"){100 - rng.randint(1, 20)}" + parts[-1] + str(rng.randint(1, 20))


def sentence(rng):
    return rng.choice(SENTENCES).format(
        formula=formula(rng), f=f"{rng.random() * 10 ** rng.randint(0, 4):.{rng.randint(0, 5)}f}",
        el=rng.choice(ELEMENTS), phase=rng.choice(PHASES), route=rng.choice(ROUTES), **{f"n{d}": str(rng.randint(10 ** (d - 1), 10**d - 1)) for d in range(1, 5)})


def paragraph(rng, low, high):
    return rng.choice([" ", "", "  "]).join(sentence(rng) for _ in range(rng.randint(low, high)))


def strewn(rng, text, pieces, share):
    """The text with pieces put between, and into, some of its words."""
    words = text.split(" ")
    for i in range(len(words)):
        if rng.random() < share:
            at = rng.choice([0, len(words[i]), rng.randint(0, len(words[i]))])
            words[i] = words[i][:at] + rng.choice(["", " "]) + rng.choice(pieces) + rng.choice(["", " "]) + words[i][at:]
    return " ".join(words)


def texts():
    rng = random.Random(2026)
    out = ["", " ", "   ", "\n", "a", "A", "0", ".", "\u00b5", "°C", "\u200b", "nan", "-0.0", "1e-300"]
    out += ["x" * 99, "x" * 100, "x" * 101, "Fe" * 400, "7" * 700]
    out += UNICODE + [" " + u for u in UNICODE]
    for form in ["{0}", "a{0}b", "a {0} b", "a  {0}{0}  b"]:
        out += [form.format(s) for s in SPECIAL]
    makers = [
        (520, lambda: paragraph(rng, 1, 5)),
        (100, lambda: strewn(rng, paragraph(rng, 1, 3), ODD_SPACE, 0.3)),
        (80, lambda: strewn(rng, paragraph(rng, 1, 3), UNICODE, 0.3)),
        (40, lambda: strewn(rng, paragraph(rng, 1, 3), SPECIAL, 0.2)),
        (30, lambda: paragraph(rng, 1, 3).upper()),
        (40, lambda: paragraph(rng, 14, 28)),
    ]
    for count, make in makers:
        out += [make() for _ in range(count)]
    out += [paragraph(rng, 1, 4) for _ in range(TEXTS - len(out))]
    assert len(out) == TEXTS, len(out)
    return out


def directory(name):
    path = os.path.join(HERE, name)
    shutil.rmtree(path, ignore_errors=True)
    os.mkdir(path)
    return path


def write(path, text):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def bpe(corpus):
    """vocab.json and merges.txt alone, as AlloyBERT ships them; trained by HF's own trainer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=BPE_SIZE, min_frequency=2, special_tokens=ROBERTA, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(corpus, trainer)
    path = directory("bpe")
    model = json.loads(tokenizer.to_str())["model"]
    write(os.path.join(path, "vocab.json"), json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":")) + "\n")
    write(os.path.join(path, "merges.txt"), "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    return path


def wordpiece(corpus, lowercase, name):
    """vocab.txt and tokenizer_config.json. WordPiece takes the longest match of any vocabulary, so this one is simply
    every character, and the commonest words, beginnings and ends (HF's trainer of it gives another result each time)."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    words = Counter()
    for text in corpus:
        words.update(word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text)))
    order = lambda counter: sorted(counter, key=lambda w: (-counter[w], w))
    characters = Counter()
    for word, count in words.items():
        characters.update({c: count for c in word})
    kept = sorted(order(characters)[:140])
    starts, ends = Counter(), Counter()
    for word, count in words.items():
        for n in range(2, 5):
            starts[word[:n]] += count
            ends["##" + word[-n:]] += count
    vocab = BERT + kept + ["##" + c for c in kept] + order(words)[:350] + order(starts)[:300] + order(ends)[:300]
    vocab = list(dict.fromkeys(vocab))
    path = directory(name)
    write(os.path.join(path, "vocab.txt"), "".join(token + "\n" for token in vocab))
    write(os.path.join(path, "tokenizer_config.json"), json.dumps({"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}) + "\n")
    return path


def expected(tokenizer, corpus):
    hashes, whole, cut = [], {}, 0
    for i, text in enumerate(corpus):
        ids = tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        cut += len(ids) < len(tokenizer(text)["input_ids"])
        hashes.append(hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:12])
        if i % (TEXTS // WHOLE) == 0:
            whole[i] = ids
    special = {k: getattr(tokenizer, f"{k}_token_id") for k in ("pad", "cls", "sep", "mask", "unk")}
    return {"vocab_size": max(tokenizer.get_vocab().values()) + 1, "special": special, "cut": cut, "hashes": " ".join(hashes), "ids": whole}


if __name__ == "__main__":
    corpus = texts()
    write(os.path.join(HERE, "texts.jsonl"), "".join(json.dumps(text) + "\n" for text in corpus))
    roberta = RobertaTokenizer.from_pretrained(bpe(corpus))
    prefixed = RobertaTokenizer.from_pretrained(os.path.join(HERE, "bpe"), add_prefix_space=True)
    prefixed.save_pretrained(directory("bpe_prefix"))
    prefixed = RobertaTokenizer.from_pretrained(os.path.join(HERE, "bpe_prefix"))
    lower = BertTokenizer.from_pretrained(wordpiece(corpus, True, "wordpiece"))
    wordpiece(corpus, False, "wordpiece_cased")
    cased = BertTokenizer.from_pretrained(os.path.join(HERE, "wordpiece_cased"))
    cased.save_pretrained(directory("wordpiece_cased"))
    cased = BertTokenizer.from_pretrained(os.path.join(HERE, "wordpiece_cased"))
    results = {"max_length": MAX_LENGTH}
    for name, tokenizer in [("bpe", roberta), ("bpe_prefix", prefixed), ("wordpiece", lower), ("wordpiece_cased", cased)]:
        results[name] = expected(tokenizer, corpus)
        print(name, {k: v for k, v in results[name].items() if k not in ("hashes", "ids")})
    write(os.path.join(HERE, "expected.json"), json.dumps(results, indent=1).replace(",\n   ", ",").replace("[\n   ", "[") + "\n")
    total = 0
    for folder, _, names in os.walk(HERE):
        total += sum(os.path.getsize(os.path.join(folder, n)) for n in names if not n.endswith((".py", ".md", ".pyc")))
    print("artefacts:", total, "bytes")
    assert total < 500_000
