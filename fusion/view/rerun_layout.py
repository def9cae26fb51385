"""How a recording opens in Rerun: the scene and six views above, curves and words below."""

from fusion.report.colours import VIEW_ORDER

EGO = "world/ego"


def layout(rerun, title: str, has_model: bool):
    """The default blueprint of a recording; a reader may rearrange it.

    Boxes are shown in the views, too: Rerun projects them through the pinholes.

    Args:
        has_model: whether there are routes, cost and exits to show.
    """
    parts = rerun.blueprint
    boxes = [f"/{EGO}/labels", f"/{EGO}/detections"]
    views = [
        parts.Spatial2DView(
            origin=f"{EGO}/{channel}/image", contents=["$origin/**", *boxes], name=channel.removeprefix("CAM_").lower()
        )
        for channel in VIEW_ORDER
    ]
    scene = parts.Spatial3DView(origin=EGO, name=title)
    curves = [parts.TimeSeriesView(origin="faults", name="faults: 1 acts")]
    if has_model:
        curves = [
            parts.TimeSeriesView(origin="routes", name="routes: 0 skipped, 0.5 lite, 1 full"),
            parts.TimeSeriesView(origin="/", contents=["exits/**", "tokens/**"], name="exit, share of tokens kept"),
            parts.TimeSeriesView(origin="cost", name="GFLOPs"),
            *curves,
        ]
    return parts.Blueprint(
        parts.Vertical(
            parts.Horizontal(scene, parts.Grid(*views, grid_columns=3), column_shares=[2, 3]),
            parts.Horizontal(*curves, parts.TextLogView(origin="events", name="events")),
            row_shares=[3, 1],
        ),
        collapse_panels=True,
    )
