// Shrinks large images before they are sent. No engine sees more than a fraction of what remains.
const MAX_SIDE = 2048;
const QUALITY = 0.92;
const MAY_HAVE_ALPHA = new Set(["image/png", "image/webp", "image/avif", "image/gif", "image/tiff"]);

/**
 * What to send of an image: `{blob, note}`. An image with a longer side than 2048 pixels is drawn smaller and told of in
 * `note`; all others, and what the browser cannot decode, stay as they are, and the API says what is wrong with them.
 */
export async function shrink(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return { blob: file, note: "" };
  try {
    const { width, height } = bitmap;
    const scale = MAX_SIDE / Math.max(width, height);
    if (scale >= 1) return { blob: file, note: "" };
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const isOpaque = !MAY_HAVE_ALPHA.has(file.type) || !hasAlpha(pen, canvas);
    const blob = await canvas.convertToBlob(isOpaque ? { type: "image/jpeg", quality: QUALITY } : { type: "image/png" });
    if (blob.size >= file.size) return { blob: file, note: "" };
    return { blob, note: `Shrunk from ${width} × ${height} (${bytes(file.size)}) to ${canvas.width} × ${canvas.height} (${bytes(blob.size)})` };
  } finally {
    bitmap.close();
  }
}

function hasAlpha(pen, { width, height }) {
  const { data } = pen.getImageData(0, 0, width, height);
  for (let at = 3; at < data.length; at += 4) if (data[at] < 255) return true;
  return false;
}

/** A size in bytes for people. */
export const bytes = (count) => (count < 1000 ? `${count} B` : count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`);
