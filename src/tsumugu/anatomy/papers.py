"""The papers that families and tokenizers come from, as facts to cite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """One paper: who, what, when, where it can be read."""

    key: str
    authors: tuple[str, ...]
    title: str
    year: int
    url: str
    more: bool = False

    @property
    def line(self) -> str:
        """As a text cites it."""
        names = ", ".join(each.rpartition(" ")[2] for each in self.authors[:3])
        return f"{names}{' et al.' if self.more or len(self.authors) > 3 else ''} {self.year}, {self.title}"

    @property
    def bibtex(self) -> str:
        """As a BibTeX entry."""
        names = " and ".join([*self.authors, *(["others"] if self.more else [])])
        rows = {"title": f"{{{self.title}}}", "author": names, "year": str(self.year), "url": self.url}
        return f"@misc{{{self.key},\n" + ",\n".join(f"  {key} = {{{value}}}" for key, value in rows.items()) + "\n}"


_ARXIV = "https://arxiv.org/abs/"
TRANSFORMER = Paper(
    "vaswani2017attention",
    ("Ashish Vaswani", "Noam Shazeer", "Niki Parmar", "Jakob Uszkoreit"),
    "Attention Is All You Need",
    2017,
    f"{_ARXIV}1706.03762",
    more=True,
)
FAMILY_PAPERS = {
    "bert": (
        Paper(
            "devlin2019bert",
            ("Jacob Devlin", "Ming-Wei Chang", "Kenton Lee", "Kristina Toutanova"),
            "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
            2019,
            f"{_ARXIV}1810.04805",
        ),
    ),
    "electra": (
        Paper(
            "clark2020electra",
            ("Kevin Clark", "Minh-Thang Luong", "Quoc V. Le", "Christopher D. Manning"),
            "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",
            2020,
            f"{_ARXIV}2003.10555",
        ),
    ),
    "gemma3": (
        Paper(
            "gemma2025gemma",
            ("Gemma Team",),
            "Gemma 3 Technical Report",
            2025,
            f"{_ARXIV}2503.19786",
        ),
    ),
    "gpt": (
        Paper(
            "radford2018improving",
            ("Alec Radford", "Karthik Narasimhan", "Tim Salimans", "Ilya Sutskever"),
            "Improving Language Understanding by Generative Pre-Training",
            2018,
            "https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf",
        ),
    ),
    "gpt2": (
        Paper(
            "radford2019language",
            ("Alec Radford", "Jeffrey Wu", "Rewon Child", "David Luan"),
            "Language Models are Unsupervised Multitask Learners",
            2019,
            "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
            more=True,
        ),
    ),
    "gpt3": (
        Paper(
            "brown2020language",
            ("Tom B. Brown", "Benjamin Mann", "Nick Ryder", "Melanie Subbiah"),
            "Language Models are Few-Shot Learners",
            2020,
            f"{_ARXIV}2005.14165",
            more=True,
        ),
    ),
    "llama": (
        Paper(
            "touvron2023llama",
            ("Hugo Touvron", "Thibaut Lavril", "Gautier Izacard", "Xavier Martinet"),
            "LLaMA: Open and Efficient Foundation Language Models",
            2023,
            f"{_ARXIV}2302.13971",
            more=True,
        ),
    ),
    "megatron": (
        Paper(
            "smith2022using",
            ("Shaden Smith", "Mostofa Patwary", "Brandon Norick", "Patrick LeGresley"),
            "Using DeepSpeed and Megatron to Train Megatron-Turing NLG 530B, A Large-Scale Generative Language Model",
            2022,
            f"{_ARXIV}2201.11990",
            more=True,
        ),
    ),
    "roberta": (
        Paper(
            "liu2019roberta",
            ("Yinhan Liu", "Myle Ott", "Naman Goyal", "Jingfei Du"),
            "RoBERTa: A Robustly Optimized BERT Pretraining Approach",
            2019,
            f"{_ARXIV}1907.11692",
            more=True,
        ),
    ),
    "t5": (
        Paper(
            "raffel2020exploring",
            ("Colin Raffel", "Noam Shazeer", "Adam Roberts", "Katherine Lee"),
            "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
            2020,
            f"{_ARXIV}1910.10683",
            more=True,
        ),
    ),
}
TYPE_PAPERS = {
    "mistral": Paper(
        "jiang2023mistral",
        ("Albert Q. Jiang", "Alexandre Sablayrolles", "Arthur Mensch", "Chris Bamford"),
        "Mistral 7B",
        2023,
        f"{_ARXIV}2310.06825",
        more=True,
    ),
    "xlm-roberta": Paper(
        "conneau2020unsupervised",
        ("Alexis Conneau", "Kartikay Khandelwal", "Naman Goyal", "Vishrav Chaudhary"),
        "Unsupervised Cross-lingual Representation Learning at Scale",
        2020,
        f"{_ARXIV}1911.02116",
        more=True,
    ),
    "mt5": Paper(
        "xue2021mt5",
        ("Linting Xue", "Noah Constant", "Adam Roberts", "Mihir Kale"),
        "mT5: A Massively Multilingual Pre-trained Text-to-Text Transformer",
        2021,
        f"{_ARXIV}2010.11934",
        more=True,
    ),
}
TOKENIZER_PAPERS = {
    "BPE": Paper(
        "sennrich2016neural",
        ("Rico Sennrich", "Barry Haddow", "Alexandra Birch"),
        "Neural Machine Translation of Rare Words with Subword Units",
        2016,
        f"{_ARXIV}1508.07909",
    ),
    "WordPiece": Paper(
        "wu2016google",
        ("Yonghui Wu", "Mike Schuster", "Zhifeng Chen", "Quoc V. Le"),
        "Google's Neural Machine Translation System: Bridging the Gap between Human and Machine Translation",
        2016,
        f"{_ARXIV}1609.08144",
        more=True,
    ),
    "Unigram": Paper(
        "kudo2018subword",
        ("Taku Kudo",),
        "Subword Regularization: Improving Neural Network Translation Models with Multiple Subword Candidates",
        2018,
        f"{_ARXIV}1804.10959",
    ),
}
SENTENCE_BERT = Paper(
    "reimers2019sentence",
    ("Nils Reimers", "Iryna Gurevych"),
    "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks",
    2019,
    f"{_ARXIV}1908.10084",
)


def papers_of(family: str | None, model_type: str | None, tokenizer: str | None, *, sentences: bool) -> list[Paper]:
    """The papers of a family (of its kin, where `model_type` says so), of its tokenizer and of sentence vectors."""
    found = [*FAMILY_PAPERS.get(family or "", ())]
    if model_type in TYPE_PAPERS:
        found.append(TYPE_PAPERS[model_type])
    if sentences:
        found.append(SENTENCE_BERT)
    if found:
        found.append(TRANSFORMER)
    if tokenizer in TOKENIZER_PAPERS:
        found.append(TOKENIZER_PAPERS[tokenizer])
    return found
