//! What goes to the device comes back, and a poisoned buffer shows.

use promptmix::Result;
use promptmix::backend::{Device as _, Format};
use promptmix::cuda::Precision;

use crate::device::{Place, device, numbers};

#[test]
fn rows_come_back_as_they_went() -> Result<()> {
    for precision in [Precision::Bf16, Precision::F32] {
        let Some(device) = device(precision) else { return Ok(()) };
        let values = numbers(1, 7 * 24, 1.0);
        for format in [Format::Residual, Format::Operand, Format::Float] {
            let rows = device.cuda.place(&values, 24, format)?;
            assert_eq!(device.cuda.read(&rows)?, values, "{precision:?} {format:?}");
        }
    }
    Ok(())
}

#[test]
fn a_buffer_that_nothing_wrote_holds_nan() -> Result<()> {
    let Some(device) = device(Precision::Bf16) else { return Ok(()) };
    let rows = device.cuda.rows(3, 8, Format::Float)?;
    let values = device.cuda.read(&rows)?;
    assert!(values.len() == 24 && values.iter().all(|value| value.is_nan()));
    Ok(())
}
