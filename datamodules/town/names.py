"""The fixed vocabulary of nuScenes' tables: categories, attributes, visibility levels. Descriptions are our own."""

CATEGORIES = {
    "human.pedestrian.adult": "A grown person on foot.",
    "human.pedestrian.child": "A young person on foot.",
    "human.pedestrian.wheelchair": "A wheelchair with whoever sits in it.",
    "human.pedestrian.stroller": "A stroller with whoever lies in it.",
    "human.pedestrian.personal_mobility": "A scooter, skateboard or the like with its user.",
    "human.pedestrian.police_officer": "A police officer on foot.",
    "human.pedestrian.construction_worker": "A person at work on a building site.",
    "animal": "Any animal.",
    "vehicle.car": "A vehicle for personal use, up to a van.",
    "vehicle.motorcycle": "A motor vehicle on two wheels.",
    "vehicle.bicycle": "A cycle moved by people or a small motor.",
    "vehicle.bus.bendy": "A bus with a joint.",
    "vehicle.bus.rigid": "A bus without a joint.",
    "vehicle.truck": "A vehicle that carries goods.",
    "vehicle.construction": "A machine for building.",
    "vehicle.emergency.ambulance": "An ambulance.",
    "vehicle.emergency.police": "A vehicle of the police.",
    "vehicle.trailer": "Anything that a vehicle pulls.",
    "movable_object.barrier": "A barrier that was put up for a while.",
    "movable_object.trafficcone": "A traffic cone.",
    "movable_object.pushable_pullable": "Something that people push or pull.",
    "movable_object.debris": "Something that lies on the road and should not.",
    "static_object.bicycle_rack": "A rack with the bicycles in it.",
}

ATTRIBUTES = {
    "vehicle.moving": "The vehicle moves.",
    "vehicle.stopped": "The vehicle stands for a moment.",
    "vehicle.parked": "The vehicle stands for long.",
    "cycle.with_rider": "Somebody rides it.",
    "cycle.without_rider": "Nobody rides it.",
    "pedestrian.sitting_lying_down": "The person sits or lies.",
    "pedestrian.standing": "The person stands.",
    "pedestrian.moving": "The person moves.",
}

VISIBILITIES = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}
"""Token to level: how much of an object is not hidden by others, in per cent."""


def visibility_token(visible_share: float) -> str:
    """Of a share in [0, 1]."""
    return str(1 + sum(visible_share > edge for edge in (0.4, 0.6, 0.8)))
