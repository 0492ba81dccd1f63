"""Makes the expected values of captions.json with the official tools: python make.py, with pycocoevalcap 1.2 and Java.

It reads nothing of this project. Inputs (sentences, corpora) are written by hand in captions.json and are kept as they are; only
what stands under "expected" is replaced.
"""

import json
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

FILE = Path(__file__).with_name("captions.json")


def tokens(texts):
    """One call, as the evaluation makes it: a line for every text."""
    done = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    return [done[number][0] for number in range(len(texts))]


def scores(corpus):
    wanted = PTBTokenizer().tokenize({n: [{"caption": text} for text in item["references"]] for n, item in enumerate(corpus)})
    said = PTBTokenizer().tokenize({n: [{"caption": item["prediction"]}] for n, item in enumerate(corpus)})
    bleu, _ = Bleu(4).compute_score(wanted, said, verbose=0)
    rouge, rouges = Rouge().compute_score(wanted, said)
    cider, ciders = Cider().compute_score(wanted, said)
    meteor, meteors = Meteor().compute_score(wanted, said)
    return {
        "bleu": list(bleu),
        "rouge_l": float(rouge),
        "rouge_l_of_each": [float(value) for value in rouges],
        "cider": float(cider),
        "cider_of_each": [float(value) for value in ciders],
        "meteor": meteor,
        "meteor_of_each": meteors,
    }


def main():
    content = json.loads(FILE.read_text(encoding="utf-8"))
    content["expected"] = {
        "tokens": tokens(content["sentences"]),
        "scores": {name: scores(corpus) for name, corpus in content["corpora"].items()},
    }
    FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
