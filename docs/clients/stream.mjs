// Follows a live stream of one face. No dependencies: Node 18 or newer, Deno, Bun, a browser.
//
//   node stream.mjs http://127.0.0.1:8000 frames/*.jpg

/** A live stream. The server remembers nothing: the features of earlier frames are kept here. */
export class Stream {
  #recent = [];
  #encoder;
  #last = Promise.resolve();

  /** @param {string} url of the server, http://HOST:PORT */
  constructor(url, { model = "dfer", timeoutMs = 60_000 } = {}) {
    this.model = `${url.replace(/\/$/, "")}/v2/models/${model}_encoded_stream`;
    this.timeoutMs = timeoutMs;
  }

  /**
   * Sends the next frame; one that failed may be sent again, to any server.
   *
   * @param {Uint8Array} image JPEG, PNG or WebP, any size
   * @returns {Promise<{expression: string, probability: number}>} for the window that ends with this frame
   * @throws {Error} with the server's reason
   */
  push(image) {
    // One after the other, also where the caller does not wait: the next request needs this one's features.
    return (this.#last = this.#last.catch(() => {}).then(() => this.#push(image)));
  }

  async #push(image) {
    this.shape ??= JSON.parse(await this.#text(this.model)).inputs.find(({ name }) => name === "recent_features").shape;
    let answer = await this.#ask(image);
    if (this.#recent.length && answer.encoder !== this.#encoder) {
      this.#recent = []; // another encoder: it cannot read these features, so the stream begins anew
      answer = await this.#ask(image);
    }
    this.#encoder = answer.encoder;
    this.#recent = [...this.#recent, answer.features].slice(-this.shape[1]);
    const [probability, , ...name] = answer.best.split(":"); // "probability:index:name"; a name may hold colons
    return { expression: name.join(":"), probability: Number(probability) };
  }

  async #ask(image) {
    const [, frames, width] = this.shape;
    const recent = new Float32Array(frames * width);
    this.#recent.forEach((features, index) => recent.set(features, index * width));
    const length = new Uint8Array(new Uint32Array([image.length]).buffer); // before the image, little endian
    const inputs = [
      { name: "images", datatype: "BYTES", shape: [1, 1], parameters: { binary_data_size: 4 + image.length } },
      { name: "recent_features", datatype: "FP32", shape: [1, frames, width], parameters: { binary_data_size: recent.byteLength } },
      { name: "recent_count", datatype: "INT32", shape: [1, 1], data: [this.#recent.length] },
    ];
    const outputs = [
      { name: "probabilities", parameters: { classification: 1 } },
      { name: "encoder_id" },
      { name: "frame_features" },
    ];
    const header = new TextEncoder().encode(JSON.stringify({ inputs, outputs }));
    const text = await this.#text(`${this.model}/infer`, {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(header.length) },
      body: new Blob([header, length, image, recent]),
    });
    const data = Object.fromEntries(JSON.parse(text).outputs.map(({ name, data }) => [name, data]));
    return { best: data.probabilities[0], encoder: data.encoder_id[0], features: data.frame_features };
  }

  async #text(url, options = {}) {
    const response = await fetch(url, { ...options, signal: AbortSignal.timeout(this.timeoutMs) });
    const text = await response.text();
    if (response.ok) return text;
    throw new Error(text.startsWith("{") ? JSON.parse(text).error : `HTTP status ${response.status}`);
  }
}

if (globalThis.process?.argv[1]?.endsWith("stream.mjs")) {
  const { readFile } = await import("node:fs/promises");
  const [url, ...paths] = process.argv.slice(2);
  if (paths.length === 0) {
    console.error("usage: node stream.mjs http://HOST:PORT IMAGE...");
    process.exit(2);
  }
  try {
    const stream = new Stream(url);
    for (const path of paths) {
      const { expression, probability } = await stream.push(await readFile(path));
      console.log(`${probability.toFixed(4)}  ${expression}`);
    }
  } catch (error) {
    console.error(`Error: ${error.message}${error.cause ? ` (${error.cause.message})` : ""}`);
    process.exit(1);
  }
}
