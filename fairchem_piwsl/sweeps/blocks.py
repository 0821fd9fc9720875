"""Blocks of a sweep file as pydantic models, whose mistakes are one sentence with key and remedy."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import did_you_mean


def _number(value: Any) -> Any:
    """`value`, unless it is true or false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f" must be a number, not {value!r}")
    return value


Float = Annotated[float, BeforeValidator(_number)]
Int = Annotated[int, BeforeValidator(_number)]
PositiveFloat = Annotated[Float, Field(gt=0)]
PositiveInt = Annotated[Int, Field(gt=0)]
NaturalInt = Annotated[Int, Field(ge=0)]


class Block(BaseModel):
    """A block of known keys; validators raise ValueError with what follows the block's key in the sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    #: what the names of further keys begin with, where there may be any
    others: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            raise ValueError(f" must be a block of keys, not {content!r}")
        known = list(cls.model_fields)
        for key in map(str, content):
            if key not in known and not (cls.others and key.startswith(cls.others)):
                raise ValueError(f": '{key}' is not a key; {did_you_mean(key, known)}")
        return content


BlockType = TypeVar("BlockType", bound=Block)


#: what a value must be, by pydantic's name of the mistake or its beginning
WANTED = {
    "greater_than": "above {gt}", "greater_than_equal": "{ge} or more", "less_than_equal": "{le} or less",
    "literal_error": "{expected}", "too_short": "{min_length} or more entries",
    "float": "a number", "finite": "a number", "int": "a whole number", "bool": "true or false",
    "list": "a list", "dict": "a block of keys", "string": "text",
}  # fmt: skip


def checked(kind: type[BlockType], content: Any, where: str) -> BlockType:
    """`content` as a block of this kind; the first mistake is a `UserError`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        context, name = mistake.get("ctx", {}), mistake["type"]
        if isinstance(context.get("error"), UserError):
            raise context["error"] from None
        wanted = WANTED.get(name, WANTED.get(name.split("_")[0], "another value")).format(**context)
        text = f" must be {wanted}, not {mistake['input']!r}"
        text = " is missing; add it" if name == "missing" else str(context.get("error", text))
        key = ".".join(str(part) for part in mistake["loc"])
        sentence = f"{key}{text}" if key else text.lstrip(": ")
        raise UserError(f"{where}: {sentence}{'' if text[-1] in '.?' else '.'}") from None
