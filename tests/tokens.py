"""The tokenizer of the small test models: whole words, otherwise bytes."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
TURNS = ("<start_of_turn>", "<end_of_turn>")
WORDS = ("Problem", "Solution", ":", " the", " of", " prime", " divisor", " story", " river", " circle", " and", "\n\n")


def pico_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of whole `WORDS` and, for everything else, single bytes; any text round-trips.

    With a chat template its turn marks are tokens, too.
    """
    special = SPECIAL_TOKENS + (TURNS if chat_template else ())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pieces = ["".join(piece for piece, _ in cut.pre_tokenize_str(word)) for word in WORDS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = list(dict.fromkeys([*special, *alphabet, *pieces]))
    vocabulary = {token: i for i, token in enumerate(names)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = cut
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        chat_template=chat_template,
    )
