// Asks a served DFER-CLIP model about the frames of one face. No dependencies: Node 18 or newer, Deno, Bun, a browser.
//
//   node predict.mjs http://127.0.0.1:8000 frames/*.jpg

const FRAMES = 16;

/**
 * The most probable expressions first.
 *
 * @param {string} url of the server, http://HOST:PORT
 * @param {Uint8Array[]} images JPEG, PNG or WebP, any size, in the order of time
 * @param {{model?: string, timeoutMs?: number}} options
 * @returns {Promise<{expression: string, probability: number}[]>} one entry for every class
 * @throws {Error} with the server's reason
 */
export async function predict(url, images, { model = "dfer", timeoutMs = 60_000 } = {}) {
  const binary = new Blob(sampled(images).flatMap((image) => [littleEndian(image.length), image]));
  const header = new TextEncoder().encode(
    JSON.stringify({
      inputs: [
        {
          name: "images",
          datatype: "BYTES",
          shape: [1, FRAMES],
          parameters: { binary_data_size: binary.size },
        },
      ],
      outputs: [{ name: "probabilities", parameters: { classification: 1000 } }],
    }),
  );
  const response = await fetch(`${url.replace(/\/$/, "")}/v2/models/${model}_encoded/infer`, {
    method: "POST",
    headers: {
      "Content-Type": "application/octet-stream",
      "Inference-Header-Content-Length": String(header.length),
    },
    body: new Blob([header, binary]),
    signal: AbortSignal.timeout(timeoutMs),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(reason(text) ?? `HTTP status ${response.status}`);
  const answer = JSON.parse(text);
  // "probability:index:name"; a name may hold colons.
  return answer.outputs[0].data.map((entry) => {
    const [probability, , ...name] = entry.split(":");
    return { expression: name.join(":"), probability: Number(probability) };
  });
}

/** What Triton says; a proxy before it does not speak JSON. */
function reason(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return undefined;
  }
}

/** 16 frames: the middles of 16 equal parts of a longer clip, the last one repeated in a shorter one. */
function sampled(images) {
  if (images.length === 0) throw new Error("there is no image; expected at least one");
  return Array.from({ length: FRAMES }, (_, k) => {
    const middle = Math.floor((images.length * (2 * k + 1)) / (2 * FRAMES));
    return images[images.length > FRAMES ? middle : Math.min(k, images.length - 1)];
  });
}

/** Triton's binary data extension writes the length of every BYTES element before it. */
function littleEndian(length) {
  const bytes = new DataView(new ArrayBuffer(4));
  bytes.setUint32(0, length, true);
  return bytes;
}

if (globalThis.process?.argv[1]?.endsWith("predict.mjs")) {
  const { readFile } = await import("node:fs/promises");
  const [url, ...paths] = process.argv.slice(2);
  if (paths.length === 0) {
    console.error("usage: node predict.mjs http://HOST:PORT IMAGE...");
    process.exit(2);
  }
  try {
    const images = await Promise.all(paths.map((path) => readFile(path)));
    for (const { expression, probability } of await predict(url, images)) {
      console.log(`${probability.toFixed(4)}  ${expression}`);
    }
  } catch (error) {
    console.error(`Error: ${error.message}${error.cause ? ` (${error.cause.message})` : ""}`);
    process.exit(1);
  }
}
