// Reads a GLB with one library and prints what it found: node read.mjs LIBRARY FILE, in a folder with node_modules.
import { readFile } from "node:fs/promises";
import draco3d_module from "draco3dgltf";
import { MeshoptDecoder } from "meshoptimizer/decoder";

const { createDecoderModule } = draco3d_module;

const [library, path] = process.argv.slice(2);
const content = new Uint8Array(await readFile(path));

async function three() {
  const { Box3, BufferAttribute, BufferGeometry, Vector3 } = await import("three");
  const { GLTFLoader } = await import("three/addons/loaders/GLTFLoader.js");
  globalThis.self = globalThis;
  // node decodes no images: that there are bytes of a known kind stands for them. WebP is asked for by an `Image`.
  globalThis.createImageBitmap = async (blob) => {
    const size = /^image\/(png|jpeg|webp)$/.test(blob.type) && blob.size ? 1 : 0;
    return { width: size, height: size, close() {} };
  };
  globalThis.Image = class {
    height = 1;
    set src(_) {
      queueMicrotask(() => this.onload());
    }
  };
  const loader = new GLTFLoader();
  loader.setMeshoptDecoder(MeshoptDecoder);
  loader.setDRACOLoader({ preload() {}, decodeDracoFile: draco3d(BufferGeometry, BufferAttribute) });
  const { scene } = await loader.parseAsync(content.buffer, "");
  const size = new Box3().setFromObject(scene).getSize(new Vector3());
  let mesh;
  scene.traverse((each) => (mesh = each.isMesh ? each : mesh));
  const { map, roughness, metalness } = mesh.material;
  return { extents: size.toArray(), texture: Boolean(map?.image?.width), material: roughness < 1 && metalness === 0, names: [mesh.name, mesh.parent?.name, mesh.material.name] };
}

// Google's decoder in the place of three.js's DRACOLoader, which runs the same one in workers of a browser.
const draco3d = (BufferGeometry, BufferAttribute) => async (buffer, done, ids, types) => {
  const draco = await createDecoderModule();
  const decoder = new draco.Decoder();
  const mesh = new draco.Mesh();
  const data = new Int8Array(buffer);
  const status = decoder.DecodeArrayToMesh(data, data.length, mesh);
  if (!status.ok()) throw new Error(status.error_msg());
  const geometry = new BufferGeometry();
  const copy = (length, Type, get) => {
    const place = draco._malloc(length * Type.BYTES_PER_ELEMENT);
    get(length * Type.BYTES_PER_ELEMENT, place);
    const values = new Type(draco.HEAPF32.buffer, place, length).slice();
    draco._free(place);
    return values;
  };
  for (const [name, id] of Object.entries(ids)) {
    const attribute = decoder.GetAttributeByUniqueId(mesh, id);
    const width = attribute.num_components();
    if (types[name] !== "Float32Array") throw new Error(`${name} is ${types[name]}`);
    const values = copy(mesh.num_points() * width, Float32Array, (bytes, place) => decoder.GetAttributeDataArrayForAllPoints(mesh, attribute, draco.DT_FLOAT32, bytes, place));
    geometry.setAttribute(name, new BufferAttribute(values, width));
  }
  const indices = copy(mesh.num_faces() * 3, Uint32Array, (bytes, place) => decoder.GetTrianglesUInt32Array(mesh, bytes, place));
  geometry.setIndex(new BufferAttribute(indices, 1));
  done(geometry);
};

async function gltfTransform() {
  const { NodeIO, getBounds } = await import("@gltf-transform/core");
  const { ALL_EXTENSIONS } = await import("@gltf-transform/extensions");
  const decoders = { "meshopt.decoder": MeshoptDecoder, "draco3d.decoder": await createDecoderModule() };
  const document = await new NodeIO().registerExtensions(ALL_EXTENSIONS).registerDependencies(decoders).readBinary(content);
  const root = document.getRoot();
  const { min, max } = getBounds(root.listScenes()[0]);
  const material = root.listMaterials()[0];
  return {
    extents: max.map((value, axis) => value - min[axis]),
    texture: Boolean(material.getBaseColorTexture()?.getSize()),
    material: material.getRoughnessFactor() < 1 && material.getMetallicFactor() === 0,
    names: [...root.listNodes(), ...root.listMeshes(), material].map((each) => each.getName()),
  };
}

async function validator() {
  const { default: library } = await import("gltf-validator");
  const { issues, info } = await library.validateBytes(content);
  if (issues.numErrors + issues.numWarnings) throw new Error(issues.messages[0].message);
  return { extents: null, texture: info.hasTextures, material: info.materialCount > 0, names: [] };
}

console.log(JSON.stringify(await { three, "gltf-transform": gltfTransform, "gltf-validator": validator }[library]()));
