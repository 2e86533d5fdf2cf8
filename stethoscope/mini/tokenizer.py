"""The mini's tokenizer: whole words, single digits, and bytes for everything else, so that any text round-trips.

Text is cut into pieces (a word with the space before it, one digit, one symbol, line breaks). A piece that is in
the vocabulary is one token; any other piece falls apart into its UTF-8 bytes, all 256 of which are tokens. It is
`tokenizers`' BPE with an empty merge list and `ignore_merges`, over the byte-level alphabet.
"""

from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PIECES = r" ?[A-Za-z]+|[0-9]|\n\n|\n| ?[^\sA-Za-z0-9]|\s"
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + (message['content'] | trim) + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def build_tokenizer(texts: Iterable[str], *, min_count: int = 3, max_words: int = 600) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are the most frequent pieces of `texts` (at least two characters long)."""
    cut = _pre_tokenizer()
    counts = Counter(piece for text in texts for piece, _ in cut.pre_tokenize_str(text))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [piece for piece, n in ranked if n >= min_count and len(piece) > 1][:max_words]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet, *sorted(words)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = _pre_tokenizer()
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    bos_id = vocabulary["<bos>"]
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", bos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )
