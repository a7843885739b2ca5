"""Worker: count the tokens of a calibration text, as the quantizing job will see them."""

from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.quantize.groupwise.calibration import TokenCount, TokenCountJob


def count_tokens(job: TokenCountJob, channel: EventChannel) -> TokenCount:
    """Tokenize the text; raises `InputError` for a tokenizer that cannot be loaded."""
    channel.progress("count tokens", 0, 1, "texts")
    # Imported here: libraries print on import, and events no longer use standard output now.
    from quant_assets.workers.groupwise.calibration import calibration_tokens, source_tokenizer

    tokens = calibration_tokens(source_tokenizer(job.source), job.text)
    channel.progress("count tokens", 1, 1, "texts")
    return TokenCount(n_tokens=len(tokens))


if __name__ == "__main__":
    serve(TokenCountJob, count_tokens)
