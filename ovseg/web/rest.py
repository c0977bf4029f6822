"""The REST endpoint: ``POST /segment`` and ``GET /health``, which ``/openapi.json`` describes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from pydantic import BaseModel, Field

import ovseg
from ovseg.vocabulary import Vocabulary
from ovseg.web.inputs import file_name, read_vocabulary
from ovseg.web.service import Service, Upload

LONGEST, LONGEST_NAME = 100_000, 200  # characters of a field with words, and of one with a name
router = APIRouter()


class Asked:
    """The fields of a form with an image and words, which the page and the endpoint share."""

    def __init__(
        self,
        request: Request,
        words: Annotated[
            str,
            Form(
                max_length=LONGEST,
                description="Words between commas; with semicolons between words, commas are between synonyms.",
            ),
        ] = "",
        label_set: Annotated[
            str, Form(max_length=LONGEST_NAME, description="Words of a data set in place of words: ade20k_150, ...")
        ] = "",
        background: Annotated[
            str,
            Form(
                max_length=LONGEST,
                description="Words between commas that compete for pixels and leave theirs unlabelled.",
            ),
        ] = "",
        granularity: Annotated[
            float | None,
            Form(ge=0, le=1, description="From 0 (coarse) to 1 (precise); by default the model's own rendering."),
        ] = None,
        min_score: Annotated[float | None, Form(description="Pixels whose best score is lower are unlabelled.")] = None,
        proposer: Annotated[
            str, Form(max_length=LONGEST_NAME, description="What finds the masks; GET /health lists the names.")
        ] = "",
    ):
        self.service: Service = request.app.state.service
        self.texts = words, label_set, background
        self.granularity, self.min_score, self.proposer = granularity, min_score, proposer

    def checked(self) -> tuple[Vocabulary, float | None, float | None, str]:
        """Return words and settings for the methods of :class:`Service`; these take no time and load nothing.

        Raises:
            OvsegError: one is not valid.
        """
        self.service.segmenter(self.proposer)
        vocabulary = read_vocabulary(*self.texts, self.service.limits)
        return vocabulary, self.granularity, self.min_score, self.proposer


class RunLengths(BaseModel):
    """A mask as COCO's run lengths, which ``pycocotools.mask.decode`` reads."""

    size: list[int] = Field(description="Height and width, pixels.")
    counts: str = Field(description="Compressed run lengths.")


class Segment(BaseModel):
    """The pixels of a word."""

    category_id: int = Field(description="Index of the word in names.")
    category_name: str
    segmentation: RunLengths
    bbox: list[float] = Field(description="x, y, width, height, pixels.")
    area: int = Field(description="Pixels.")
    score: float = Field(description="Mean of the winning score over the pixels, in the unit of the model.")
    fraction: float = Field(description="Area as a share of the image.")


class Segmented(BaseModel):
    """A segmented image: what ``ovseg segment`` writes as JSON."""

    image: str | None = Field(description="Name of the file.")
    height: int
    width: int
    names: list[str] = Field(description="The words that were looked for.")
    background: list[str]
    segments: list[Segment] = Field(description="One for each word found, largest first.")
    unlabelled_fraction: float
    model: str


class Health(BaseModel):
    """State of the server."""

    status: str
    version: str
    model: str
    proposers: list[str]
    waiting: int = Field(description="Requests that wait for the model.")


class Problem(BaseModel):
    """Why there is no result."""

    error: str = Field(description="What is wrong, and what to do.")


PROBLEMS = {
    400: {"model": Problem, "description": "The words, a setting or the image are missing or not valid."},
    413: {"model": Problem, "description": "The request or the image is too large."},
    415: {"model": Problem, "description": "The file is not an image."},
    503: {"model": Problem, "description": "Too many requests are waiting: try again later."},
}


@router.post("/segment", response_model=Segmented, responses=PROBLEMS, summary="Segment an image into words")
async def segment(
    image: Annotated[UploadFile, File(description="A JPEG, PNG, WebP, TIFF, BMP or GIF file.")],
    asked: Annotated[Asked, Depends(Asked)],
    request: Request,
) -> dict:
    """Every pixel gets one of the words, or a background word, whose pixels are unlabelled."""
    service: Service = request.app.state.service
    given = asked.checked()
    upload = Upload(file_name(image.filename), await image.read())
    upload.check(service.limits)
    result = await service.model_line.run(lambda: service.segment(upload, *given), request.is_disconnected)
    return result.to_json() | {"model": service.model_name}


@router.get("/health", response_model=Health, summary="State of the server")
async def health(request: Request) -> dict:
    """Answers at once, also while the model works."""
    service: Service = request.app.state.service
    return {
        "status": "ok",
        "version": ovseg.__version__,
        "model": service.model_name,
        "proposers": list(service.segmenters),
        "waiting": service.model_line.waiting,
    }
