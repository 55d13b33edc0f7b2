"""Balancing methods: factories that return a `Balancer`, and `aggregate`, which runs one on an explicit Jacobian."""

from mtljax.balancing._aggregate import Aggregate, aggregate
from mtljax.balancing._aligned_mtl import aligned_mtl
from mtljax.balancing._auto_lambda import auto_lambda
from mtljax.balancing._bloop import bloop
from mtljax.balancing._cagrad import cagrad
from mtljax.balancing._config import config, config_momentum
from mtljax.balancing._conicgrad import conicgrad
from mtljax.balancing._db_mtl import db_mtl
from mtljax.balancing._dwa import dwa
from mtljax.balancing._excess_mtl import excess_mtl
from mtljax.balancing._fairgrad import fairgrad
from mtljax.balancing._famo import famo
from mtljax.balancing._fixed import constant, equal
from mtljax.balancing._forum import forum
from mtljax.balancing._geometric import geometric, scale_invariant
from mtljax.balancing._go4align import go4align
from mtljax.balancing._graddrop import graddrop
from mtljax.balancing._gradnorm import gradnorm
from mtljax.balancing._gradvac import gradvac
from mtljax.balancing._imtl import imtl, imtl_g, imtl_l
from mtljax.balancing._ldc_mtl import ldc_mtl
from mtljax.balancing._mgda import mgda
from mtljax.balancing._moco import moco
from mtljax.balancing._modo import modo
from mtljax.balancing._moml import moml
from mtljax.balancing._nash_mtl import nash_mtl
from mtljax.balancing._parse import parse, parse_names
from mtljax.balancing._pcd import pcd
from mtljax.balancing._pcgrad import pcgrad
from mtljax.balancing._pivrg import pivrg
from mtljax.balancing._preference import cosmos, pbi
from mtljax.balancing._rlw import rlw
from mtljax.balancing._robust import krum, trimmed_mean
from mtljax.balancing._sdmgrad import sdmgrad
from mtljax.balancing._stch import stch, stch_nadir
from mtljax.balancing._uncertainty import uncertainty
from mtljax.balancing._upgrad import dualproj, upgrad
from mtljax.balancing._wrappers import ema, every, log_losses, normalized, warmup

METHODS = {
  factory.__name__: factory
  for factory in (
    # level losses
    *(equal, constant, rlw, uncertainty, dwa, geometric, scale_invariant, imtl_l, famo),
    *(stch, stch_nadir, cosmos, pbi, go4align, ldc_mtl),
    # level gramian
    *(mgda, pcgrad, gradvac, cagrad, imtl_g, imtl, nash_mtl, fairgrad, pivrg, aligned_mtl),
    *(upgrad, dualproj, config, pcd, gradnorm, krum, conicgrad),
    # level jacobian
    *(graddrop, moco, excess_mtl, db_mtl, trimmed_mean, config_momentum, bloop),
    # level oracle
    *(modo, sdmgrad, auto_lambda, moml, forum),
    # wrappers
    *(log_losses, normalized, ema, every, warmup),
  )
}

__all__ = ['METHODS', 'Aggregate', 'aggregate', 'parse', 'parse_names', *METHODS]
