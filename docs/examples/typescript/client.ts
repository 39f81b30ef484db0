/**
 * A client of the image-to-3d HTTP API for browsers and Node 20.3 or later. It uses `fetch` and Web Crypto and has no
 * dependency. Bodies are typed by schema.d.ts, which is generated from the OpenAPI document; fields keep their names.
 */
import type { components, paths } from "./schema.js";

type Schemas = components["schemas"];
type PostPath = { [P in keyof paths]: paths[P] extends { post: object } ? P : never }[keyof paths];
type AnswerOf<P extends PostPath> = paths[P]["post"]["responses"][200]["content"]["application/json"];

/** A Blob or File, which is uploaded with the request; or an http(s) URL, a `data:` URI or base64. */
export type ImageSource = string | Blob;
/** One image, or several views of one subject, either all as files or all as texts. */
export type Images = ImageSource | string[] | Blob[];
export type SubmitOptions = Partial<Omit<Schemas["ImageTo3DRequest"], "key" | "image">>;
export type TextOptions = Partial<Omit<Schemas["TextTo3DRequest"], "key" | "prompt" | "init_mesh">> & {
  /** A mesh whose shape is kept, where the deployment allows it: a Blob or File, or as an image's text. */
  init_mesh?: ImageSource;
};
export type ExportOptions = Omit<
  paths["/api/v6/3d/export/{call_id}"]["post"]["requestBody"]["content"]["application/json"],
  "key"
>;
export type SuccessBody = Schemas["SuccessBody"];
export type FailedBody = Schemas["FailedBody"];
export type ProcessingBody = Schemas["ProcessingBody"];
export type FileEntry = Schemas["FileEntry"];
export type EstimateBody = Schemas["EstimateBody"];
/** A job in any state; `status` says which. */
export type Job = SuccessBody | ProcessingBody | FailedBody;

export interface ClientOptions {
  /** How often a request is repeated after a broken connection or a 502, 503 or 504. 3 by default. */
  retries?: number;
  /** Milliseconds before the first repetition, doubled for each further one. 500 by default. */
  retry_pause_ms?: number;
  /** Milliseconds that one request may take with its body and its answer. Two minutes by default. */
  timeout_ms?: number;
}

export interface SubmitSettings {
  /** The same text gives the same job. A random one by default, so that a repeated request makes no second job. */
  idempotency_key?: string;
  signal?: AbortSignal;
}

export interface WaitSettings {
  /** Called with every new state, about every two seconds. */
  on_progress?: (job: ProcessingBody) => void;
  signal?: AbortSignal;
}

/** A request that was refused, or an answer that is not the API's. */
export class ApiError extends Error {
  override name = "ApiError";
  constructor(
    message: string,
    /** HTTP status. */
    readonly status: number,
    /** The code of the refusal; empty if the answer is not one of the API's, such as the page of a proxy. */
    readonly error_code: string,
    /** Seconds until a repetition may succeed, where the service states it. */
    readonly retry_after: number | undefined,
    /** For the report to the operator, where the service states it. */
    readonly request_id: string | undefined,
  ) {
    super(message);
  }
}

/** A job that failed or was cancelled. */
export class JobFailed extends Error {
  override name = "JobFailed";
  readonly error_code: string;
  readonly retryable: boolean;
  constructor(readonly job: FailedBody) {
    super(`job ${job.id} failed (${job.error_code}): ${job.message}`);
    this.error_code = job.error_code;
    this.retryable = job.retryable;
  }
}

/** A webhook whose signature or time does not fit. */
export class InvalidWebhook extends Error {
  override name = "InvalidWebhook";
}

const PASSING = [502, 503, 504];
const POLL_S = 2;
const LONG_POLL_S = 20;
const MAX_PAUSE_MS = 30_000;
const WEBHOOK_TOLERANCE_S = 300;

export class Client {
  readonly #url: string;
  readonly #key: string;
  readonly #retries: number;
  readonly #pauseMs: number;
  readonly #timeoutMs: number;

  /**
   * @param url address of the service, with the path that it is served below, if any
   * @param key API key; in a web page a browser token
   */
  constructor(url: string, key: string, options: ClientOptions = {}) {
    this.#url = url.replace(/\/+$/, "");
    this.#key = key;
    this.#retries = options.retries ?? 3;
    this.#pauseMs = options.retry_pause_ms ?? 500;
    this.#timeoutMs = options.timeout_ms ?? 120_000;
  }

  /** Start a job and return at once. */
  async submit(image: Images, options: SubmitOptions = {}, settings: SubmitSettings = {}): Promise<Job> {
    return this.#post("/api/v6/3d/image_to_3d", submitBody(image, options), settings, {
      prefer: "wait=0",
      "idempotency-key": settings.idempotency_key ?? randomText(),
    });
  }

  /** Start a job that makes a model from a text, where the service has an engine that takes one; return at once. */
  async submitText(prompt: string, options: TextOptions = {}, settings: SubmitSettings = {}): Promise<Job> {
    return this.#post("/api/v6/3d/text_to_3d", textBody(prompt, options), settings, {
      prefer: "wait=0",
      "idempotency-key": settings.idempotency_key ?? randomText(),
    });
  }

  /** What a submit would take, without a job. */
  async estimate(image: Images, options: SubmitOptions = {}, settings: { signal?: AbortSignal } = {}): Promise<EstimateBody> {
    return this.#post("/api/v6/3d/estimate", submitBody(image, options), settings);
  }

  /** Start a job that writes a finished job's files in another format or size, without the engine; return at once. */
  async exportAgain(job: Job | number, options: ExportOptions, settings: SubmitSettings = {}): Promise<Job> {
    return this.#post("/api/v6/3d/export/{call_id}", JSON.stringify(options), settings, {
      call_id: idOf(job),
      prefer: "wait=0",
      "idempotency-key": settings.idempotency_key ?? randomText(),
    });
  }

  /** Wait for the end of a job. Throws `JobFailed` if it fails or is cancelled. */
  async wait(job: Job | number, settings: WaitSettings = {}): Promise<SuccessBody> {
    let state = typeof job === "number" ? undefined : job;
    for (;;) {
      if (state?.status === "success") return state;
      if (state?.status === "failed") throw new JobFailed(state);
      if (state) settings.on_progress?.(state);
      // Answered as soon as the job ends, so the loop needs no pause of its own.
      const seconds = settings.on_progress ? POLL_S : LONG_POLL_S;
      state = await this.#post("/api/v6/3d/fetch/{call_id}", "{}", settings, {
        call_id: idOf(state ?? job),
        prefer: `wait=${seconds}`,
      });
    }
  }

  /** Cancel a waiting job at once and ask a running one to stop; a job that has ended stays as it is. */
  async cancel(job: Job | number, settings: { signal?: AbortSignal } = {}): Promise<Job> {
    return this.#post("/api/v1/enterprise/3d/cancel/{call_id}", "{}", settings, { call_id: idOf(job) });
  }

  /** The content of a file of a finished job. The link is the permission: the key is not sent. */
  async download(file: FileEntry | string, settings: { signal?: AbortSignal } = {}): Promise<Blob> {
    const url = typeof file === "string" ? file : file.url;
    return this.#repeat(settings.signal, async (signal) => {
      const response = await fetch(url, { signal });
      if (!response.ok) throw refusal(response, await response.text());
      return response.blob();
    });
  }

  /** POST a JSON text or a form. `headers.call_id` goes into the path, the others are sent. */
  async #post<P extends PostPath>(
    path: P,
    body: string | FormData,
    settings: { signal?: AbortSignal },
    headers: { call_id?: string; [name: string]: string } = {},
  ): Promise<AnswerOf<P>> {
    const { call_id = "", ...sent } = headers;
    const url = this.#url + path.replace("{call_id}", call_id);
    const type: Record<string, string> = typeof body === "string" ? { "content-type": "application/json" } : {};
    return this.#repeat(settings.signal, async (signal) => {
      const response = await fetch(url, {
        method: "POST",
        headers: { authorization: `Bearer ${this.#key}`, ...type, ...sent },
        body,
        signal,
      });
      const text = await response.text();
      const answer = asObject(text);
      // A deployment with ERRORS_AS_200 refuses with HTTP 200 too.
      if (!response.ok || answer === undefined || answer["status"] === "error") throw refusal(response, text);
      return answer as AnswerOf<P>;
    });
  }

  /** Make a request until it succeeds, is refused, or has failed too often for a passing reason. */
  async #repeat<T>(signal: AbortSignal | undefined, request: (signal: AbortSignal) => Promise<T>): Promise<T> {
    for (let attempt = 0; ; attempt += 1) {
      const timeout = AbortSignal.timeout(this.#timeoutMs);
      try {
        return await request(signal ? AbortSignal.any([signal, timeout]) : timeout);
      } catch (error) {
        signal?.throwIfAborted();
        // `fetch` throws a TypeError for a connection that breaks or is refused, and a DOMException at the timeout.
        const passing = error instanceof ApiError ? PASSING.includes(error.status) : true;
        if (!passing || attempt >= this.#retries) throw error;
        const stated = error instanceof ApiError ? 1000 * (error.retry_after ?? 0) : 0;
        const pause = this.#pauseMs * 2 ** attempt * (0.5 + Math.random());
        await sleep(Math.min(Math.max(stated, pause), MAX_PAUSE_MS), signal);
      }
    }
  }
}

/**
 * Verify a webhook as Standard Webhooks describes, and return its body. The same `webhook-id` comes again when an
 * attempt is repeated: act on each id once.
 *
 * @param secret the key's webhook secret, `whsec_…`
 * @param headers of the request; names in lower case, as `Headers` and Node's `request.headers` have them
 * @param body the request's body as it arrived
 * @throws InvalidWebhook
 */
export async function verifyWebhook(
  secret: string,
  headers: Headers | Record<string, string | string[] | undefined>,
  body: string,
): Promise<SuccessBody | FailedBody> {
  const header = (name: string) => String((headers instanceof Headers ? headers.get(name) : headers[name]) ?? "");
  const id = header("webhook-id");
  const timestamp = header("webhook-timestamp");
  const age_s = Math.abs(Date.now() / 1000 - Number(timestamp || NaN));
  if (!(age_s <= WEBHOOK_TOLERANCE_S)) throw new InvalidWebhook("the webhook has no time, or one that is too far off");
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", fromBase64(secret.replace(/^whsec_/, "")), algorithm, false, ["verify"]);
  const signed = new TextEncoder().encode(`${id}.${timestamp}.${body}`);
  for (const signature of header("webhook-signature").split(" ")) {
    const [version, value = ""] = signature.split(",");
    // `verify` compares in constant time.
    if (version === "v1" && (await crypto.subtle.verify("HMAC", key, fromBase64(value), signed))) return JSON.parse(body);
  }
  throw new InvalidWebhook("the webhook has no signature of this secret");
}

function submitBody(image: Images, options: SubmitOptions): string | FormData {
  const images = Array.isArray(image) ? image : [image];
  const fields = images.length > 1 ? { multi_image: true, ...options } : options;
  const files = images.filter((one): one is Blob => typeof one !== "string");
  if (files.length === 0) return JSON.stringify({ ...fields, image });
  if (files.length < images.length) throw new TypeError("the views must be all files or all texts");
  const form = formOf(fields);
  files.forEach((file, index) => form.append("image", file, file instanceof File ? file.name : `image${index + 1}`));
  return form;
}

function textBody(prompt: string, { init_mesh, ...options }: TextOptions): string | FormData {
  const fields = { ...options, prompt };
  if (!(init_mesh instanceof Blob)) return JSON.stringify({ ...fields, init_mesh });
  const form = formOf(fields);
  form.append("init_mesh", init_mesh, init_mesh instanceof File ? init_mesh.name : "mesh");
  return form;
}

function formOf(fields: object): FormData {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined || value === null) continue;
    form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  return form;
}

function refusal(response: Response, text: string): ApiError {
  const body = asObject(text);
  const stated = Number(body?.["retry_after"] ?? response.headers.get("retry-after") ?? NaN);
  const message = body?.["message"] ?? `HTTP ${response.status}, not an answer of the API: ${text.slice(0, 200)}`;
  return new ApiError(
    String(message),
    response.status,
    String(body?.["error_code"] ?? ""),
    Number.isFinite(stated) ? stated : undefined,
    response.headers.get("x-request-id") ?? undefined,
  );
}

function asObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

function idOf(job: Job | number): string {
  return String(typeof job === "number" ? job : job.id);
}

/** 128 random bits; `crypto.randomUUID` exists only in pages that were loaded by https. */
function randomText(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    throw new InvalidWebhook("the secret or the signature is not base64");
  }
}

async function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
  signal?.throwIfAborted();
}
