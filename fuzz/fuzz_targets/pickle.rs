//! The pickle of a `torch.save` archive, under a good checksum and beside one storage of 64 bytes: any instructions are an
//! error or tensors that lie inside the file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use promptmix::pretrained::TensorFile;

fuzz_target!(|pickle: &[u8]| {
    let bytes = archive(&[("data.pkl", pickle), ("data/0", &[0; 64])]);
    let size = bytes.len();
    if let Ok(file) = TensorFile::torch_from_bytes(Path::new("pytorch_model.bin"), bytes) {
        for name in file.names() {
            let shape = file.shape(name).expect("a listed tensor").to_vec();
            if let Ok(values) = file.tensor(name, &shape) {
                assert!(values.len() <= size / 2 && values.iter().all(|value| value.is_finite()));
            }
        }
    }
});

/// A zip archive of plainly stored members.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let (name, offset) = (format!("archive/{name}"), file.len() as u32);
        let length = (data.len() as u32).to_le_bytes();
        let mut about = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        about.extend_from_slice(&rawzip::crc32(data).to_le_bytes());
        about.extend_from_slice(&length);
        about.extend_from_slice(&length);
        about.extend_from_slice(&[name.len() as u8, 0, 0, 0]);
        for (to, signature) in [(&mut file, &b"PK\x03\x04"[..]), (&mut directory, b"PK\x01\x02\x14\0")] {
            to.extend_from_slice(signature);
            to.extend_from_slice(&about);
        }
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(data);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (start, length, count) = (file.len() as u32, directory.len() as u32, members.len() as u8);
    file.extend_from_slice(&directory);
    file.extend_from_slice(&[b'P', b'K', 5, 6, 0, 0, 0, 0, count, 0, count, 0]);
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(&start.to_le_bytes());
    file.extend_from_slice(&[0, 0]);
    file
}
