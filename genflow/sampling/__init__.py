"""Sampling: from seeds to images."""

from genflow.sampling.generate import generate as generate
from genflow.sampling.generate import network_calls as network_calls
from genflow.sampling.guidance import guided as guided
from genflow.sampling.noise import SeededNoise as SeededNoise
from genflow.sampling.samplers import ancestral as ancestral
from genflow.sampling.samplers import dpmpp_2m as dpmpp_2m
from genflow.sampling.samplers import euler as euler
from genflow.sampling.samplers import heun as heun
from genflow.sampling.samplers import straight as straight
from genflow.sampling.samplers import straight_heun as straight_heun
