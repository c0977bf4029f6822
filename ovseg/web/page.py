"""The page: its files, and what its script asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

import ovseg
from ovseg.errors import OvsegError
from ovseg.vocabulary.label_set import label_set_names
from ovseg.web.answers import file_of, painting, region, shown_image
from ovseg.web.inputs import file_name
from ovseg.web.limits import Refused
from ovseg.web.rest import LONGEST_NAME, Asked
from ovseg.web.scenes import Scene
from ovseg.web.service import OWN, Service, Upload

STATIC = Path(__file__).parent / "static"
THUMBNAIL = 320  # pixels of the longer side of an example
router = APIRouter(include_in_schema=False)
Place = Annotated[float, Query(ge=0, le=1)]


class Rendering(BaseModel):
    """How a scene is rendered; see :meth:`Scene.paint`."""

    granularity: float | None = None
    min_score: float | None = None


class Correction(BaseModel):
    """An edit of a scene; see :meth:`Scene.edit`."""

    x: float
    y: float
    name: Annotated[str | None, Field(max_length=LONGEST_NAME)] = None
    whole_word: bool = False


def service_of(request: Request) -> Service:
    return request.app.state.service


def scene_of(request: Request, name: str) -> Scene:
    return service_of(request).scenes.get(name)


Server = Annotated[Service, Depends(service_of)]
Visited = Annotated[Scene, Depends(scene_of)]


@router.get("/")
async def index() -> Response:
    return FileResponse(STATIC / "index.html")


@router.get("/docs")
async def docs() -> Response:
    return FileResponse(STATIC / "docs.html")


@router.get("/favicon.ico")
async def icon() -> Response:
    return FileResponse(STATIC / "icon.svg")


@router.get("/api/about")
async def about(service: Server) -> dict[str, Any]:
    """Return what the page shows of the server."""
    own = service.segmenters[OWN]
    return {
        "version": ovseg.__version__,
        "model": service.model_name,
        "licence": own.card.licence,
        "note": service.note,
        "words": service.words,
        "proposers": [{"name": name, "keeps_masks": one.keeps_masks} for name, one in service.segmenters.items()],
        "examples": [{"name": example.name, "words": list(example.words)} for example in service.examples],
        "label_sets": list(label_set_names()),
        "largest_upload": service.limits.upload,
        "minutes": service.limits.idle / 60,
    }


@router.get("/api/examples/{name}")
async def example(name: str, service: Server) -> Response:
    """Return the thumbnail of an example."""
    found = service.example(name)
    content = await service.paint_line.run(lambda: shown_image(found.load(), THUMBNAIL))
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})


@router.post("/api/scenes")
async def segment(
    request: Request,
    service: Server,
    asked: Annotated[Asked, Depends(Asked)],
    image: Annotated[UploadFile | None, File()] = None,
    example: Annotated[str, Form(max_length=LONGEST_NAME)] = "",
    before: Annotated[str, Form(max_length=LONGEST_NAME)] = "",
) -> dict[str, Any]:
    """Segment an image or an example, keep its masks, and forget the visitor's scene before."""
    given = asked.checked()
    if example:
        upload = Upload(example, example=service.example(example))
    elif image is None:
        raise Refused(400, "there is no image: choose one, or an example")
    else:
        upload = Upload(file_name(image.filename), await image.read())
    upload.check(service.limits)

    def work() -> dict[str, Any]:
        name, scene = service.scene(upload, *given, before)
        return {"id": name, "keeps_masks": service.segmenter(given[-1]).keeps_masks, **painting(scene)}

    return await service.model_line.run(work, request.is_disconnected)


@router.get("/api/scenes/{name}/image")
async def image(scene: Visited, service: Server) -> Response:
    content = await service.paint_line.run(lambda: shown_image(scene.shown.image))
    return Response(content, media_type="image/jpeg")


@router.post("/api/scenes/{name}/paint")
async def paint(rendering: Rendering, scene: Visited, service: Server) -> dict[str, Any]:
    """Render the kept masks with other settings."""
    return await _changed(service, scene, lambda: _paint(scene, rendering))


@router.get("/api/scenes/{name}/region")
async def explain(
    scene: Visited, service: Server, x: Place = 0.5, y: Place = 0.5, label: int | None = None
) -> dict[str, Any]:
    """Return the region at a point, or the largest one of a label, with the scores of its masks."""

    def work() -> dict[str, Any]:
        with scene.lock:
            return region(scene, *((y, x) if label is None else scene.largest_region(label)))

    return await service.paint_line.run(work)


@router.post("/api/scenes/{name}/edits")
async def edit(change: Correction, scene: Visited, service: Server) -> dict[str, Any]:
    """Rename or drop a region, or all regions of its word."""
    if not (0 <= change.x <= 1 and 0 <= change.y <= 1):
        raise OvsegError("x and y are parts of the width and height: give numbers from 0 to 1")
    return await _changed(service, scene, lambda: scene.edit(change.y, change.x, change.name, change.whole_word))


@router.delete("/api/scenes/{name}/edits")
async def undo(scene: Visited, service: Server, all: bool = False) -> dict[str, Any]:
    """Take back the last edit, or all."""
    return await _changed(service, scene, lambda: scene.undo(all))


@router.get("/api/scenes/{name}/files/{kind}")
async def download(kind: str, scene: Visited, service: Server) -> Response:
    file, media_type, content = await service.paint_line.run(lambda: file_of(scene, kind))
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(file)}"}
    return Response(content, media_type=media_type, headers=headers)


@router.delete("/api/scenes/{name}")
async def forget(name: str, service: Server) -> dict[str, Any]:
    service.scenes.drop(name)
    return {}


def _paint(scene: Scene, rendering: Rendering) -> None:
    with scene.lock:
        scene.paint(rendering.granularity, rendering.min_score, scene.edits)


async def _changed(service: Service, scene: Scene, change: Callable[[], object]) -> dict[str, Any]:
    """Change a scene, and return its new rendering."""

    def work() -> dict[str, Any]:
        with scene.lock:
            change()
            return painting(scene)

    return await service.paint_line.run(work)
