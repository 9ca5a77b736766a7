"""Loops are found in assembly as it is written: with blocks out of line, predicates, and loops in loops."""

from collections import Counter

import pytest

from tritonconv.targets.assembly import Assembly

# As ptxas lays out a loop that waits for a barrier: the waiting stands behind the code, and branches back into it.
WAITING = """
.text.kernel:
        /*0000*/                   MOV R1, R2 ;
.L_x_2:
        /*0010*/                   SYNCS.PHASECHK.TRYWAIT P0, [UR4] ;
        /*0020*/              @!P0 BRA `(.L_x_4) ;
.L_x_3:
        /*0030*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24 ;
        /*0040*/               @P1 BRA `(.L_x_2) ;
        /*0050*/                   STG.E [R2], R24 ;
        /*0060*/                   EXIT ;
.L_x_4:
        /*0070*/                   SYNCS.PHASECHK.TRYWAIT P0, [UR4] ;
        /*0080*/              @!P0 BRA `(.L_x_4) ;
        /*0090*/                   BRA `(.L_x_3) ;
.L_x_5:
        /*00a0*/                   BRA `(.L_x_5);
        /*00b0*/                   NOP;
"""
NESTED = """
kernel:
    s_load_dword s0, s[4:5], 0x0
.LBB0_1:
    v_add_u32_e32 v0, v0, v1
.LBB0_2:
    v_mfma_f32_32x32x8f16 a[0:15], v[0:1], v[2:3], a[0:15]
    s_cbranch_scc1 .LBB0_2
    v_mul_f32_e32 v3, v3, v3
    s_cbranch_scc0 .LBB0_1
    s_branch .LBB0_3
    v_unreached_f32 v3, v3
.LBB0_3:
    global_load_dword v4, v5, off
    global_load_dword v4, v5, off
    global_load_dword v4, v5, off
    s_cbranch_vccnz .LBB0_3
    s_endpgm
"""


def test_a_wait_out_of_line_belongs_to_the_loop_and_what_follows_it_does_not():
    loop = Assembly(WAITING).main_loop(lambda mnemonic: mnemonic.startswith("HGMMA"))
    assert loop == Counter({"SYNCS.PHASECHK.TRYWAIT": 2, "BRA": 4, "HGMMA.64x128x16.F32": 1})


def test_of_nested_loops_the_innermost_counts():
    loop = Assembly(NESTED).main_loop(lambda mnemonic: mnemonic.startswith("v_mfma"))
    assert loop == Counter({"v_mfma_f32_32x32x8f16": 1, "s_cbranch_scc1": 1})


def test_without_any_such_instruction_the_longest_counts():
    assert Assembly(NESTED).main_loop(lambda mnemonic: False)["global_load_dword"] == 3


@pytest.mark.parametrize(("text", "total"), ((WAITING, 12), (NESTED, 13)), ids=("SASS", "AMD"))
def test_every_instruction_is_counted_once(text, total):
    assert Assembly(text).count().total() == total


def test_straight_code_has_no_loop():
    assert Assembly("    s_load_dword s0, s[4:5], 0x0\n    s_endpgm\n").main_loop(bool) == Counter()
