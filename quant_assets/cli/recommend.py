"""`quant-assets recommend`: which variant to run on which offer or processor, and why."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from quant_assets.cli.options import CommandOptions, takes_models
from quant_assets.cli.output import output_console
from quant_assets.cli.presentation import Reply
from quant_assets.errors import InputError
from quant_assets.settings import get_settings
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.host_recommendation import (
    OBJECTIVE,
    THIS_MACHINE,
    HostAnswer,
    HostOption,
    HostQuestion,
    Objective,
    recommend_for_host,
)
from quant_assets.warehouse.recommendation import Answer, Question, Recommendation
from quant_assets.warehouse.recommendation import recommend as answer_question

_AMOUNT = re.compile(
    r"\s*\$?\s*(\d+(?:\.\d+)?)\s*(?:(?:USD|\$)?\s*(?:/\s*|per\s+)(?:h|hr|hour))?\s*"
)
_CONTEXT = 8192
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*")


class QuestionOptions(CommandOptions):
    """The model to serve, and limits on speed and quality loss."""

    model: Annotated[str, typer.Option(help="Name of the model in the model list.")]
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of prompt and answer per sequence.",
            min=1,
            show_default=f"{_CONTEXT}; with --cpu, that of the processor's runs",
        ),
    ] = None
    batch: Annotated[int, typer.Option(help="Concurrent sequences.", min=1)] = 1
    min_tokens_per_second: Annotated[
        float | None, typer.Option(help="Minimum decoding speed per sequence.", min=0)
    ] = None
    max_quality_loss: Annotated[
        str | None,
        typer.Option(help="Maximum increase in perplexity over F16, such as 3% or 0.03."),
    ] = None
    limit: Annotated[int, typer.Option(help="Number of options to show.", min=1, max=1000)] = 10

    @property
    def quality_limit(self) -> float | None:
        """The limit on quality loss as a share; raises `InputError` if it cannot be parsed."""
        loss = self.max_quality_loss
        return None if loss is None else parse_share(loss)


class OfferOptions(CommandOptions):
    """Limits on the price of an offer."""

    max_price: Annotated[
        str | None, typer.Option(help="Rent for at most this price, such as 2.0/h (USD).")
    ] = None
    budget: Annotated[float | None, typer.Option(help="Buy for at most this (USD).", min=0)] = None

    def question(self, asked: QuestionOptions) -> Question:
        """The question to the warehouse; raises `InputError` for an amount that cannot be parsed."""
        return Question(
            model=asked.model,
            context=asked.context or _CONTEXT,
            batch=asked.batch,
            max_hourly_usd=None if self.max_price is None else parse_hourly_price(self.max_price),
            budget_usd=self.budget or None,
            min_tokens_per_s=asked.min_tokens_per_second or None,
            max_quality_loss=asked.quality_limit,
            limit=asked.limit,
        )


class ProcessorOptions(CommandOptions):
    """A processor in place of offers."""

    cpu: Annotated[
        str | None,
        typer.Option(
            help=f"Answer for a processor with benchmark records instead of offers: {THIS_MACHINE}, "
            "or its name in the records."
        ),
    ] = None
    objective: Annotated[
        Objective | None,
        typer.Option("--for", help="With --cpu: what counts most.", show_default=OBJECTIVE),
    ] = None
    max_memory_gb: Annotated[
        float | None,
        typer.Option(
            help="With --cpu: limit of weights, KV cache and buffers, in GB (10^9 bytes).", min=0
        ),
    ] = None

    def question(self, asked: QuestionOptions) -> HostQuestion:
        """The question about the processor; raises `InputError` for an unreadable amount."""
        return HostQuestion(
            model=asked.model,
            cpu=self.cpu or THIS_MACHINE,
            objective=self.objective or OBJECTIVE,
            context=asked.context,
            batch=asked.batch,
            min_tokens_per_s=asked.min_tokens_per_second or None,
            max_quality_loss=asked.quality_limit,
            max_memory_gb=self.max_memory_gb or None,
            limit=asked.limit,
        )


@takes_models
def recommend(
    asked: QuestionOptions, offers: OfferOptions, host: ProcessorOptions
) -> Reply[Answer] | Reply[HostAnswer]:
    """Rank what can be rented or bought to serve a model by cost per token, with the reasons.

    With --cpu, rank the model's variants on a processor instead, by speed or quality, from its own
    benchmark records: cells that were not measured are estimated from those that were.
    """
    settings = get_settings()
    _check_combination(offers, host)
    if host.cpu is not None:
        return Reply(recommend_for_host(host.question(asked), settings), _print_host)
    question = offers.question(asked)
    with Warehouse(settings.warehouse).read() as connection:
        return Reply(answer_question(connection, question), _print)


def _check_combination(offers: OfferOptions, host: ProcessorOptions) -> None:
    """Raise `InputError` where limits of offers meet a processor, or the other way round."""
    of_offers = {"--max-price": offers.max_price, "--budget": offers.budget}
    of_host = {"--for": host.objective, "--max-memory-gb": host.max_memory_gb}
    wrong = of_host if host.cpu is None else of_offers
    given = [name for name, value in wrong.items() if value is not None]
    if given:
        raise InputError(
            f"{' and '.join(given)} cannot be used {'without' if host.cpu is None else 'with'} --cpu.",
            "A processor at hand has no price."
            if host.cpu is not None
            else "Offers are ranked by their cost per token, and each card has its own memory.",
            "Leave it out."
            if host.cpu is not None
            else f"Add --cpu {THIS_MACHINE}, or leave it out.",
        )


def parse_hourly_price(text: str) -> float:
    """Dollars per hour from `2`, `2.0/h` or `$2/hour`; raise `InputError` for anything else."""
    found = _AMOUNT.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise InputError(
            f"The price {text!r} cannot be read.",
            "It is not a positive amount of dollars per hour.",
            "Write it as in `--max-price 2.0/h`.",
        )
    return float(found[1])


def parse_share(text: str) -> float:
    """A share from `3%` or `0.03`; raise `InputError` for anything else.

    A bare number above 1 is refused: it is almost certainly a percentage without its sign.
    """
    found = _SHARE.fullmatch(text)
    if found is None or (not found[2] and float(found[1]) > 1):
        raise InputError(
            f"The quality loss {text!r} cannot be read.",
            "It is neither a percentage nor a share between 0 and 1.",
            "Write it as in `--max-quality-loss 3%` or `--max-quality-loss 0.03`.",
        )
    return float(found[1]) / (100 if found[2] else 1)


def _loss(option: Recommendation) -> str:
    """The quality loss with its interval, and below it that of the KV cache types alone."""
    loss = _measured_loss(option)
    if option.quality_loss is not None and option.kv_cache_loss is not None:
        loss += f"\nKV {option.kv_cache_loss:+.1%} at {option.kv_cache_context_tokens}"
    return loss


def _measured_loss(option: Recommendation | HostOption) -> str:
    """The quality loss, and below it its interval."""
    if option.quality_loss is None:
        return "?"
    loss = f"{option.quality_loss:+.1%}"
    if option.quality_basis == "measured" and option.quality_loss_low is not None:
        loss += f"\n{option.quality_loss_low:+.1%} to {option.quality_loss_high:+.1%}"
    return loss


def _ranking(title: str, caption: str, texts: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty table of ranked options, with columns of text and, after them, of figures."""
    table = Table(
        title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for column in texts:
        table.add_column(column, no_wrap=True)
    for column in figures:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_counts(what: str, by_reason: Mapping[str, int]) -> None:
    console = output_console()
    for reason, number in by_reason.items():
        console.print(f"{what}: {number} {reason}", soft_wrap=True)


def _print(answer: Answer) -> None:
    console = output_console()
    question = answer.question
    table = _ranking(
        f"{question.model}, context {answer.context}, batch {answer.batch}",
        "tokens/s per copy over all sequences, its interval and basis; ~ marks an estimate; "
        "loss of perplexity relative to F16, with its interval",
        texts=("", "variant", "GPU and seller"),
        figures=("price $", "tokens/s", "$/M tokens", "loss"),
    )
    for option in answer.recommendations:
        about = "" if option.speed_basis == "measured" else "~"
        table.add_row(
            str(option.place),
            option.variant,
            (f"{option.gpu_count} x {option.gpu}" if option.gpu_count > 1 else option.gpu)
            + f"\n{option.seller or ''}",
            f"{option.price_usd:,.2f}" + ("/h" if option.price_kind == "hourly" else ""),
            f"{about}{option.decode_tokens_per_s:,.0f}\n"
            f"{option.decode_tokens_per_s_low:,.0f}-{option.decode_tokens_per_s_high:,.0f}\n"
            f"{option.speed_basis}",
            f"{option.usd_per_million_tokens:,.4f}",
            _loss(option),
        )
    if answer.recommendations:
        console.print(table)
    else:
        console.print("No offer meets the requirements.")
    for option in answer.recommendations[:3]:
        console.print(f"{option.variant} on {option.gpu}. {option.reason}", soft_wrap=True)
    if (question.context, question.batch) != (answer.context, answer.batch):
        console.print(
            f"You asked for context {question.context}, batch {question.batch}; the answer is for the "
            "next larger point of the marts' grid.",
            soft_wrap=True,
        )
    _print_counts("excluded", answer.left_out)


def _print_host(answer: HostAnswer) -> None:
    console = output_console()
    question = answer.question
    table = _ranking(
        f"{question.model} on {answer.cpu_name} with {answer.threads} threads, context "
        f"{answer.context}, batch {answer.batch}",
        "tokens/s over all sequences, with its interval; ~ marks an estimate",
        texts=("", "variant"),
        figures=("tokens/s", "interval", "memory GB", "loss"),
    )
    for option in answer.options:
        about = "" if option.speed_basis == "measured" else "~"
        table.add_row(
            str(option.place),
            option.variant,
            f"{about}{option.decode_tokens_per_s:,.1f}",
            f"{option.decode_tokens_per_s_low:,.1f}-{option.decode_tokens_per_s_high:,.1f}",
            f"{option.memory_gb:,.2f}",
            _measured_loss(option),
        )
    if answer.options:
        console.print(table)
    else:
        console.print("No variant meets the requirements.")
    for option in answer.options[:3]:
        console.print(f"{option.variant}. {option.reason}", soft_wrap=True)
    _print_counts("excluded", answer.left_out)
    _print_counts("runs not used", answer.runs_left_out)
