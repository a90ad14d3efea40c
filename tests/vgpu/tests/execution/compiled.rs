//! What ptxas and cuobjdump say of kernels reaches the table: registers, spills, shared memory, instruction counts.

use std::path::Path;

use vgpu::compiled::{CompileError, Compiled, Tools, compile};

fn tools() -> Tools {
    Tools::find(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("ptxas beside the nvcc that made the PTX")
}

fn gemm() -> Option<(String, Compiled)> {
    let text = crate::bench::ptx("gemm", &[])?;
    let [found] = compile(&tools(), &text, &["gemm"], "sm_80").unwrap().try_into().unwrap();
    Some((text, found))
}

#[test]
fn tensor_core_instructions_and_copies_are_counted() {
    let Some((text, found)) = gemm() else { return };
    // ptxas unrolls no loop of this kernel, and one m16n8k16 is one HMMA.
    assert_eq!(found.tensor as usize, text.matches("mma.sync").count());
    assert_eq!(found.async_copies as usize, text.matches("cp.async.cg").count());
    assert!(found.instructions > 10 * found.tensor, "{found:?}");
    // 64 accumulators stay in registers.
    assert!(found.registers > 64 && found.registers <= 255, "{found:?}");
    assert_eq!((found.stack, found.spill_stores, found.spill_loads), (0, 0, 0));
}

#[test]
fn a_kernel_short_of_registers_spills() {
    let Some((text, free)) = gemm() else { return };
    let text = text.replace(".maxntid 256", ".maxnreg 32\n.maxntid 256");
    let found = &compile(&tools(), &text, &["gemm"], "sm_80").unwrap()[0];
    assert!(found.registers <= 32, "{found:?}");
    // More than 32 of the accumulators do not fit, four bytes each.
    assert!(found.spill_stores > 128 && found.spill_loads > 128 && found.stack > 128, "{found:?}");
    assert!(found.instructions > free.instructions);
}

#[test]
fn only_the_kernels_that_are_asked_for_are_compiled_with_their_shared_memory() {
    let Some(text) = crate::bench::ptx("faults", &["-DFAULT=0", "-arch=compute_90"]) else { return };
    let names = ["two_steps", "turn_tile"];
    let mut found = compile(&tools(), &text, &names, "sm_90").unwrap();
    found.sort_by(|a, b| b.kernel.cmp(&a.kernel));
    let shared: Vec<(&str, &str, u32)> =
        found.iter().map(|one| (one.kernel.as_str(), one.target.as_str(), one.shared)).collect();
    // A tile of 128 numbers, and one of 32 rows of 33.
    assert_eq!(shared, [("two_steps", "sm_90", 512), ("turn_tile", "sm_90", 4224)]);
}

#[test]
fn what_ptxas_refuses_is_passed_on() {
    if crate::bench::ptx("gemm", &[]).is_none() {
        return;
    }
    let text =
        ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry odd()\n{\nfrob.u32 %r1;\nret;\n}\n";
    let error = compile(&tools(), text, &["odd"], "sm_80").unwrap_err();
    assert!(matches!(error, CompileError::Tool { tool: "ptxas", .. }), "{error}");
    assert!(error.to_string().contains("frob") || error.to_string().contains("line 6"), "{error}");
}

#[test]
fn tools_that_are_missing_are_named() {
    let nowhere = Tools { ptxas: "/nowhere/ptxas".into(), cuobjdump: "/nowhere/cuobjdump".into() };
    let error = compile(&nowhere, "", &[], "sm_80").unwrap_err().to_string();
    assert!(error.contains("/nowhere/ptxas") && error.contains("VGPU_CUDA_BIN"), "{error}");
}
