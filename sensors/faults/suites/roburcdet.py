"""RobuRCDet's four radar noises (ICLR 2025), by name in training schedules: one severity, sigma 5."""

from sensors.faults import published_radar as radar
from sensors.faults.suites.published import Published, RadarPart, ladder

ROBURCDET = (
    Published("roburcdet_missing", "points", ladder(RadarPart, radar.roburcdet_missing, ())),
    Published("roburcdet_spurious", "false points", ladder(RadarPart, radar.roburcdet_spurious, (5.0,))),
    Published("roburcdet_shift", "noise", ladder(RadarPart, radar.roburcdet_shift, (5.0,))),
    Published("roburcdet_disturbance", "noise", ladder(RadarPart, radar.roburcdet_disturbance, (5.0,))),
)
