//! SentencePiece models written by hand, field by field of their protocol buffer.

/// The bytes of a model of these pieces: text, score, kind.
pub fn bytes<S: AsRef<str>>(
    pieces: &[(S, f32, u8)],
    model_type: u8,
    byte_fallback: bool,
    charsmap: &[u8],
) -> Vec<u8> {
    let mut model = Vec::new();
    for (text, score, kind) in pieces {
        let mut piece = field(1, text.as_ref().as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend_from_slice(&score.to_le_bytes());
        piece.extend_from_slice(&[3 << 3, *kind]);
        model.extend(field(1, &piece));
    }
    // Field 35 has a two-byte tag: 35 << 3 = 280.
    let trainer = [3 << 3, model_type, 0x98, 0x02, u8::from(byte_fallback)];
    model.extend(field(2, &trainer));
    model.extend(field(3, &field(2, charsmap)));
    model
}

/// A length-delimited field of a protocol buffer.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(content);
    bytes
}
