"""Sampling: from seeds to images, and from images back to noise."""

from genflow.sampling.generate import generate as generate
from genflow.sampling.generate import network_calls as network_calls
from genflow.sampling.guidance import guided as guided
from genflow.sampling.inversion import decode as decode
from genflow.sampling.inversion import inversion_calls as inversion_calls
from genflow.sampling.inversion import invert as invert
from genflow.sampling.inversion import rising_times as rising_times
from genflow.sampling.inversion import slerp as slerp
from genflow.sampling.inversion import translate as translate
from genflow.sampling.noise import SeededNoise as SeededNoise
from genflow.sampling.samplers import ancestral as ancestral
from genflow.sampling.samplers import dpmpp_2m as dpmpp_2m
from genflow.sampling.samplers import euler as euler
from genflow.sampling.samplers import heun as heun
from genflow.sampling.samplers import multistep as multistep
from genflow.sampling.samplers import straight as straight
from genflow.sampling.samplers import straight_heun as straight_heun
